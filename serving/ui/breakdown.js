// The score of a hit as the sum of what each word of the query contributes. It opens on hover and focus; a click keeps it open.

import { element, slice } from "./dom.js";

const ROUNDING = 0.02; // of codes and residuals against the exact score

let number = 0; // of the next panel, for its id

// Returns the score of a hit with its panel.
export function scoreElement(hit, words, engine) {
  const shown = hit.score.toFixed(3);
  if (!hit.matches) return element("span", { className: "score", textContent: shown });
  const id = `breakdown-${number++}`;
  const opener = element("button", { type: "button", className: "score", "aria-expanded": "false", "aria-controls": id }, shown);
  opener.setAttribute("aria-label", `score ${shown}, show its parts`);
  const panel = element("div", { id, className: "breakdown", role: "group", "aria-label": `Parts of the score ${shown}`, hidden: true });
  const made = element("span", { className: "scored" }, "score ", opener, panel);
  let kept = false;
  const show = (open) => {
    if (open && !panel.firstChild) panel.append(...parts(hit, words, engine));
    panel.hidden = !open;
    opener.setAttribute("aria-expanded", String(open));
  };
  made.addEventListener("mouseenter", () => show(true));
  made.addEventListener("mouseleave", () => kept || opener === document.activeElement || show(false));
  opener.addEventListener("focus", () => show(true));
  opener.addEventListener("blur", () => kept || show(false));
  opener.addEventListener("click", () => show((kept = !kept)));
  made.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show((kept = false));
  });
  return made;
}

function parts(hit, words, engine) {
  const rows = words.map((word) => ({ word, sum: total(word.tokens, hit), found: matched(word, hit) }));
  const sum = rows.reduce((all, row) => all + row.sum, 0);
  const largest = Math.max(1e-9, ...rows.map((row) => Math.abs(row.sum)));
  const heads = ["query", "best match", "adds"].map((text) => element("th", { scope: "col", textContent: text }));
  const body = rows.map((row) => {
    const bar = element("span", { className: row.sum < 0 ? "part minus" : "part", "aria-hidden": "true" });
    bar.style.width = `${(100 * Math.abs(row.sum)) / largest}%`;
    return element(
      "tr",
      {},
      element("th", { scope: "row", textContent: row.word.text, className: row.word.special ? "special" : "" }),
      element("td", { textContent: row.found }),
      element("td", { className: "sum" }, element("span", { className: "track" }, bar), row.sum.toFixed(3)),
    );
  });
  const last = element("tr", { className: "total" }, element("th", { scope: "row", textContent: "sum" }), element("td"), element("td", { className: "sum", textContent: sum.toFixed(3) }));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...body, last));
  const differs = Math.abs(sum - hit.score) > ROUNDING * Math.max(1, Math.abs(sum));
  const ranked = { bm25: "BM25", hybrid: "the fused score" }[engine] ?? "an estimate of it";
  const note = `The sum is the exact late-interaction score. ${engine} ranks by ${ranked}: ${hit.score.toFixed(3)}.`;
  return [table, differs ? element("p", { textContent: note }) : null].filter(Boolean);
}

const total = (tokens, hit) => tokens.reduce((sum, token) => sum + (hit.matches[token]?.contribution ?? 0), 0);

// The words of the document that a word of the query matched, without repetition.
function matched(word, hit) {
  if (word.special) return "–";
  const texts = word.tokens.map((token) => {
    const match = hit.matches[token];
    return match?.field ? slice(hit[match.field] ?? "", match.start, match.end) : "";
  });
  return [...new Set(texts.filter(Boolean))].join(" ") || "–";
}
