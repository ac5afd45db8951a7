// The picture of a page that is an image, with the parts that the words of the query matched. The more a part adds to the score, the
// stronger its colour.

import { element } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const PICTURE = /^data:image\/(webp|png|jpeg);base64,[A-Za-z0-9+/=]+$/;

// Returns the picture with its matches; null for a document that is no image.
export function pageElement(hit, words) {
  const source = hit.metadata?.page?.thumbnail;
  if (typeof source !== "string" || !PICTURE.test(source)) return null;
  const picture = element("img", { src: source, alt: hit.title ? `page: ${hit.title}` : `page ${hit.doc_id}`, loading: "lazy" });
  const made = element("figure", { className: "page" }, picture);
  const heat = heatMap(hit, words);
  if (heat) made.append(heat);
  return made;
}

// Returns one rectangle for each matched part: words that matched the same part share it.
function heatMap(hit, words) {
  const parts = new Map();
  words.forEach((word, number) => {
    for (const token of word.tokens) {
      const match = hit.matches?.[token];
      if (!match?.box || match.contribution <= 0) continue;
      const key = match.box.join(" ");
      const part = parts.get(key) ?? { box: match.box, sum: 0, words: new Set() };
      part.sum += match.contribution;
      part.words.add(number);
      parts.set(key, part);
    }
  });
  if (!parts.size) return null;
  const strongest = Math.max(...[...parts.values()].map((part) => part.sum));
  const svg = svgElement("svg", { class: "heat", viewBox: "0 0 1 1", preserveAspectRatio: "none", role: "img", "aria-label": summary(parts, words) });
  for (const { box, sum, words: matched } of parts.values()) {
    const [left, top, right, bottom] = box;
    const rectangle = svgElement("rect", { x: left, y: top, width: right - left, height: bottom - top, "fill-opacity": 0.2 + (0.6 * sum) / strongest });
    rectangle.dataset.words = [...matched].join(" ");
    rectangle.append(Object.assign(svgElement("title", {}), { textContent: `${names(matched, words)} (${sum.toFixed(2)})` }));
    svg.append(rectangle);
  }
  return svg;
}

const names = (matched, words) => [...matched].map((number) => words[number].text).join(", ");

function summary(parts, words) {
  const matched = new Set([...parts.values()].flatMap((part) => [...part.words]));
  return `${parts.size} parts of the page match ${names(matched, words)}`;
}

function svgElement(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
