// Compares the answers of two sides: what they share, and where each document stands on the other side.

import { count, element } from "./dom.js";

// Adds to each hit its rank on the other side, and returns the summary.
export function compareSides(left, right) {
  const ids = [left, right].map((side) => side.answer.results[0].map((hit) => hit.doc_id));
  [left, right].forEach((side, own) => {
    side.results.querySelectorAll(".hit").forEach((hit, rank) => {
      const other = ids[1 - own].indexOf(hit.dataset.id);
      hit.querySelector(".facts").append(rankElement(rank, other, own ? left.name : right.name));
      hit.classList.toggle("only", other < 0);
    });
  });
  const shared = ids[0].filter((id) => ids[1].includes(id)).length;
  const longest = Math.max(...ids.map((each) => each.length));
  const same = ids[0].findIndex((id, rank) => id !== ids[1][rank]);
  const equal = same < 0 && ids[0].length === ids[1].length;
  if (!longest) return "Both sides are empty.";
  if (equal) return `Both sides have the same ${count(longest, "document")} in the same order.`;
  const first = same === 0 ? "The first ranks differ." : `The first ${count(same < 0 ? shared : same, "rank")} agree.`;
  return `${shared} of ${count(longest, "document")} are on both sides. ${first}`;
}

function rankElement(rank, other, name) {
  const moved = rank - other;
  const [text, kind] =
    other < 0
      ? [`not in ${name}`, "only"]
      : moved === 0
        ? [`same rank in ${name}`, "same"]
        : [`${name}: rank ${other + 1} ${moved > 0 ? "▲" : "▼"}`, moved > 0 ? "up" : "down"];
  return element("span", { className: `badge ${kind}`, textContent: text });
}

// A pointer or the focus on a hit shows the same document on the other side.
export function linkSides(sides) {
  for (const side of sides) {
    const mark = (event, on) => {
      const id = event.target.closest?.(".hit")?.dataset.id;
      for (const each of sides) {
        for (const hit of each.results.querySelectorAll(".hit")) hit.classList.toggle("twin", on && id !== undefined && hit.dataset.id === id);
      }
    };
    for (const name of ["mouseover", "focusin"]) side.results.addEventListener(name, (event) => mark(event, document.body.classList.contains("compared")));
    for (const name of ["mouseleave", "focusout"]) side.results.addEventListener(name, (event) => mark(event, false));
  }
}
