// The words of a query, and the words of documents that they match.

import { element } from "./dom.js";

const LEVELS = 5;

// Adjacent tokens are one word. Special tokens, which are not in the text, become one last word.
export function wordsOf(query, tokens) {
  const points = Array.from(query); // spans count code points
  const found = [];
  tokens.forEach((token, number) => {
    if (token.start == null) return;
    const last = found.at(-1);
    if (last && last.end === token.start) {
      last.end = token.end;
      last.tokens.push(number);
    } else found.push({ start: token.start, end: token.end, tokens: [number], special: false });
  });
  for (const word of found) word.text = points.slice(word.start, word.end).join("");
  const special = tokens.flatMap((token, number) => (token.start == null ? [number] : []));
  if (special.length) found.push({ text: "special tokens", tokens: special, special: true });
  return found;
}

// Returns one button a word. A pointer or the focus shows the word's matches; a click keeps them shown.
export function wordButtons(words, section) {
  let kept = null;
  const buttons = words.map((word, number) => {
    const made = element("button", { type: "button", className: word.special ? "word special" : "word", textContent: word.text, "aria-pressed": "false" });
    for (const event of ["mouseenter", "focus"]) made.addEventListener(event, () => choose(section, number));
    for (const event of ["mouseleave", "blur"]) made.addEventListener(event, () => choose(section, kept));
    made.addEventListener("click", () => {
      kept = kept === number ? null : number;
      buttons.forEach((each, position) => each.setAttribute("aria-pressed", String(position === kept)));
      choose(section, kept);
    });
    return made;
  });
  return buttons;
}

// Shows the matches of one word of the query; null: the matches of all words.
export function choose(section, number) {
  section.classList.toggle("chosen", number !== null);
  section.querySelectorAll(".word").forEach((each, position) => each.classList.toggle("on", position === number));
  for (const mark of section.querySelectorAll("mark, .heat rect"))
    mark.classList.toggle("on", number !== null && mark.dataset.words.split(" ").includes(String(number)));
}

// Returns the highlights of a field, each with the numbers of the query's words that matched it.
export function spansOf(hit, field, words) {
  return (hit.highlights ?? [])
    .filter((mark) => mark.field === field)
    .map(({ start, end, strength, query_tokens }) => {
      const matched = words.flatMap((word, number) => (word.tokens.some((token) => query_tokens.includes(token)) ? [number] : []));
      return { start, end, strength, words: new Set(matched) };
    });
}

// Returns an element with a text, whose spans are marked in five strengths.
export function highlighted(made, text, spans, strongest, words) {
  const points = Array.from(text);
  let at = 0;
  for (const span of spans) {
    if (span.start < at) continue;
    made.append(points.slice(at, span.start).join(""));
    const level = Math.ceil((LEVELS * span.strength) / strongest);
    const mark = element("mark", { className: level > 0 ? `m${level}` : "" }, points.slice(span.start, span.end).join(""));
    mark.title = `matches ${[...span.words].map((number) => words[number].text).join(", ")} (${span.strength.toFixed(2)})`;
    mark.dataset.words = [...span.words].join(" ");
    made.append(mark);
    at = span.end;
  }
  made.append(points.slice(at).join(""));
  return made;
}
