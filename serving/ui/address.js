// The address holds the whole search: queries, settings, filters and the document to explain. A link to it repeats the search.

import { $ } from "./dom.js";

const USUAL = { k: "10", engine: "auto", quality: "balanced", version: "", engine2: "auto", quality2: "balanced", version2: "" };

export function writeAddress() {
  const parameters = new URLSearchParams();
  const compared = $("compare").getAttribute("aria-pressed") === "true";
  for (const [name, value] of new FormData($("search"))) {
    const text = value.trim();
    if (text && text !== USUAL[name] && (compared || !name.endsWith("2"))) parameters.append(name, text);
  }
  if (compared) parameters.set("compare", "1");
  if ($("doc-id").value) parameters.set("why", $("doc-id").value);
  const address = `${location.pathname}?${parameters}`;
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
}

export function readAddress() {
  const parameters = new URLSearchParams(location.search);
  for (const control of $("search").elements) {
    if (!control.name) continue;
    const values = parameters.getAll(control.name);
    if (control.type === "checkbox") control.checked = values.includes(control.value);
    else {
      control.value = values[0] ?? USUAL[control.name] ?? "";
      if (control.tagName === "SELECT" && !control.value) control.value = USUAL[control.name] ?? ""; // not one of the choices
    }
  }
  $("doc-id").value = parameters.get("why") ?? "";
  return { compared: parameters.get("compare") === "1" };
}
