// The form of filters: one control for each metadata field of the index. Its conditions become a filter text such as
// `"year" >= 2020 and "lang" in ["en"]`, which the service reads together with the text of the filter box.

import { $, element } from "./dom.js";

const MAX_CONTROLS = 24;
const MAX_CHECKBOXES = 8;
const OWN = ["title", "text", "doc_id"]; // fields of the document itself, which hide metadata of the same name

let controls = []; // functions that return the conditions of one field

const quoted = (text) => `"${text.replace(/[\\"]/g, "\\$&")}"`;
const literal = (value) => (typeof value === "string" ? quoted(value) : String(value));
const path = (keys) => (keys.length === 1 && OWN.includes(keys[0]) ? ["metadata", ...keys] : keys).map(quoted).join(".");

export function buildFilters(fields) {
  const shown = fields.slice(0, MAX_CONTROLS);
  controls = [];
  $("fields").replaceChildren(...shown.map(control));
  $("fields").hidden = !shown.length;
}

// Returns the filter of the request, or null. Throws an error if the filter box holds JSON and fields are set too.
export function filterText() {
  const text = $("filter").value.trim();
  const conditions = controls.flatMap((conditionsOf) => conditionsOf());
  if (!conditions.length) return text || null;
  if (text.startsWith("{")) throw new Error("Fields cannot be combined with a filter in JSON. Clear one of the two.");
  return [...(text ? [`(${text})`] : []), ...conditions].join(" and ");
}

export function numFilters() {
  return controls.filter((conditionsOf) => conditionsOf().length).length + ($("filter").value.trim() ? 1 : 0);
}

export function clearFilters() {
  for (const control of $("filters").querySelectorAll("input, select")) {
    if (control.type === "checkbox") control.checked = false;
    else control.value = "";
  }
}

function control(field) {
  const name = field.path.join(".");
  const filtered = path(field.path);
  const group = element("fieldset", { className: "field" }, element("legend", { textContent: name }));
  const made = (field.kind === "number" && range) || (field.kind === "date" && days) || (field.kind === "boolean" && truth) || values;
  controls.push(made(group, name, filtered, field));
  return group;
}

function labelled(text, input) {
  return element("label", {}, element("span", { textContent: text }), input);
}

function range(group, name, filtered, { lowest, highest }) {
  const input = (key, placeholder) => element("input", { type: "number", step: "any", name: `${key}:${name}`, placeholder });
  const [low, high] = [input("min", lowest), input("max", highest)];
  group.append(labelled("from", low), labelled("to", high));
  group.classList.add("range");
  return () => [...(low.value ? [`${filtered} >= ${low.value}`] : []), ...(high.value ? [`${filtered} <= ${high.value}`] : [])];
}

function days(group, name, filtered, { lowest, highest }) {
  const input = (key) => element("input", { type: "date", name: `${key}:${name}`, min: lowest.slice(0, 10), max: highest.slice(0, 10) });
  const [low, high] = [input("min"), input("max")];
  group.append(labelled("from", low), labelled("to", high));
  group.classList.add("days");
  const after = (day) => new Date(Date.parse(day) + 86_400_000).toISOString().slice(0, 10); // includes times of the last day
  return () => [...(low.value ? [`${filtered} >= ${quoted(low.value)}`] : []), ...(high.value ? [`${filtered} < ${quoted(after(high.value))}`] : [])];
}

function truth(group, name, filtered) {
  const options = [["", "any"], ["true", "true"], ["false", "false"]].map(([value, text]) => element("option", { value, textContent: text }));
  const select = element("select", { name: `is:${name}`, "aria-label": name }, ...options);
  group.append(select);
  return () => (select.value ? [`${filtered} = ${select.value}`] : []);
}

// Few values are check boxes, any of which may hold; otherwise a text that the field contains, with suggestions.
function values(group, name, filtered, field) {
  const isList = field.kind === "list";
  if (field.complete && field.values.length <= MAX_CHECKBOXES) {
    const boxes = field.values.map((value) => element("input", { type: "checkbox", name: `is:${name}`, value: String(value) }));
    group.append(element("div", { className: "boxes" }, ...boxes.map((box) => element("label", {}, box, box.value))));
    return () => {
      const chosen = field.values.filter((_, number) => boxes[number].checked).map(literal);
      if (!chosen.length) return [];
      return [isList ? `(${chosen.map((value) => `${filtered} ~ ${value}`).join(" or ")})` : `${filtered} in [${chosen.join(", ")}]`];
    };
  }
  const suggestions = element("datalist", { id: `values-of-${name}` }, ...field.values.map((value) => element("option", { value: String(value) })));
  const input = element("input", { name: `has:${name}`, "aria-label": `${name} ${isList ? "has" : "contains"}`, autocomplete: "off" });
  input.setAttribute("list", suggestions.id);
  input.placeholder = isList ? "has" : "contains";
  group.append(input, suggestions);
  const numeric = field.values.some((value) => typeof value !== "string");
  return () => (input.value ? [`${filtered} ~ ${numeric ? input.value : quoted(input.value)}`] : []);
}
