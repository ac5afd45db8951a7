// One hit: title, facts, metadata, and its best passage. FACTS lists what stands in the line below the title.

import { button, element } from "./dom.js";
import { scoreElement } from "./breakdown.js";
import { pageElement } from "./page.js";
import { highlighted, spansOf } from "./words.js";

const SHORT = 60; // longest shown metadata value, in characters
const SHOWN = 6; // shown metadata fields

// Functions of (hit, answer, words) that return an element or null, in the order of the line.
export const FACTS = [
  (hit) => element("span", { className: "doc-id", textContent: hit.doc_id }),
  (hit, answer, words) => scoreElement(hit, words, answer.engine),
  (hit) => hit.sides && sidesElement(hit.sides),
  passageElement,
];

// Which side of a hybrid search found a hit, and both scores.
function sidesElement({ found_by, bm25, late_interaction }) {
  const found = found_by.join(" and ");
  const text = `found by ${found} · BM25 ${bm25.toFixed(2)} · vectors ${late_interaction?.toFixed(2) ?? "–"}`;
  return element("span", { className: "sides", textContent: text, title: "terms: among the best by BM25. vectors: among the best by late interaction." });
}

export function hitElements(answer, words) {
  const hits = answer.results[0];
  const spans = hits.map((hit) => ({ title: spansOf(hit, "title", words), text: spansOf(hit, "text", words) }));
  const strongest = Math.max(1e-9, ...spans.flatMap((each) => [...each.title, ...each.text].map((span) => span.strength)));
  return hits.map((hit, number) => hitElement(hit, number + 1, answer, words, spans[number], strongest));
}

// Where the best window of a long document lies in its text; null for a document that is not divided.
function passageElement(hit) {
  if (!hit.passage || (!hit.snippet?.start && !hit.snippet?.more)) return null;
  const place = `characters ${hit.passage.start.toLocaleString("en")} to ${hit.passage.end.toLocaleString("en")}`;
  return element("span", { className: "passage", textContent: place, title: "The part of the text with the largest part of the score" });
}

function hitElement(hit, rank, answer, words, spans, strongest) {
  const made = element("li", { className: "hit" });
  made.dataset.id = hit.doc_id;
  made.append(element("span", { className: "rank", "aria-hidden": "true", textContent: rank }));
  const content = element("div", { className: "content" });
  if (hit.title) content.append(highlighted(element("h3"), hit.title, spans.title, strongest, words));
  content.append(element("div", { className: "facts" }, ...FACTS.map((fact) => fact(hit, answer, words))));
  const page = pageElement(hit, words);
  if (page) content.append(page);
  if (!page || hit.text) content.append(...passages(hit, spans, strongest, words));
  if (Object.keys(hit.metadata ?? {}).length) content.append(metadataElement(hit.metadata));
  made.append(content);
  return made;
}

// The best passage, and the whole text if it is longer.
function passages(hit, spans, strongest, words) {
  const build = () => highlighted(element("p", { className: "text" }), hit.text ?? "", spans.text, strongest, words);
  if (!hit.snippet || (!hit.snippet.start && !hit.snippet.more)) return [build()];
  const { text, start, more } = hit.snippet;
  const length = Array.from(text).length;
  const inside = spans.text
    .filter((span) => span.start >= start && span.end <= start + length)
    .map((span) => ({ ...span, start: span.start - start, end: span.end - start }));
  const passage = highlighted(element("p", { className: "text" }), text, inside, strongest, words);
  if (start) passage.prepend("… ");
  if (more) passage.append(" …");
  let whole = null; // it may be very long, and is built when it is shown first
  const unfold = button("Show all", { className: "unfold", "aria-expanded": "false" }, () => {
    if (!whole) {
      whole = build();
      whole.hidden = true;
      passage.after(whole);
    }
    passage.hidden = whole.hidden;
    whole.hidden = !whole.hidden;
    unfold.textContent = whole.hidden ? "Show all" : "Show less";
    unfold.setAttribute("aria-expanded", String(!whole.hidden));
  });
  return [passage, unfold];
}

function plain(value) {
  if (Array.isArray(value)) return value.map(plain).join(", ");
  return typeof value === "string" ? value : JSON.stringify(value);
}

function metadataElement(metadata) {
  const shown = Object.entries(metadata)
    .filter(([name]) => name !== "page")
    .slice(0, SHOWN);
  const rows = shown.map(([name, value]) => {
    const text = plain(value);
    const short = text.length > SHORT ? `${text.slice(0, SHORT)}…` : text;
    return element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: short }));
  });
  return element("dl", { className: "metadata", title: JSON.stringify(metadata, null, 1).slice(0, 2000) }, ...rows);
}
