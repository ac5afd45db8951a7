// The search page. Reads the form, runs one search or two, and keeps the address, the form and the results together.

import { addDocument, showAdd } from "./add.js";
import { readAddress, writeAddress } from "./address.js";
import { ask } from "./api.js";
import { compareSides, linkSides } from "./compare.js";
import { $, element } from "./dom.js";
import { showIndexFacts } from "./facts.js";
import { buildFilters, clearFilters, filterText, numFilters } from "./filters.js";
import { explainMissing } from "./missing.js";
import { Side } from "./side.js";
import { failedElement } from "./states.js";
import { choose } from "./words.js";

let facts = null; // answer of GET /index

const actions = {
  clear() {
    clearFilters();
    submit();
  },
  refused() {
    $("access").hidden = false;
    $("token").focus();
  },
  retry: () => (facts ? runSearch() : start()),
};
const sides = [new Side($("side-a"), "A", actions), new Side($("side-b"), "B", actions)];
const compared = () => $("compare").getAttribute("aria-pressed") === "true";

function setCompared(on) {
  $("compare").setAttribute("aria-pressed", String(on));
  document.body.classList.toggle("compared", on);
  for (const id of ["settings-b", "side-b"]) $(id).hidden = !on;
}

// Returns the request of side A ("") or side B ("2"); an empty query of side B means the query of side A.
function requestOf(suffix) {
  const form = new FormData($("search"));
  const value = (name) => (form.get(name + suffix) ?? "").trim();
  const filters = filterText();
  return {
    query: value("q") || form.get("q").trim(),
    k: Number(form.get("k")),
    engine: value("engine"),
    quality: value("quality") || "balanced",
    ...(value("version") && { version: Number(value("version")) }),
    ...(filters && { filters }),
  };
}

async function runSearch() {
  const query = $("query").value.trim();
  document.title = query ? `${query} – Search` : "Search";
  $("why").hidden = !query;
  $("reason").replaceChildren();
  $("summary").textContent = "";
  showNumFilters();
  const shown = compared() ? sides : sides.slice(0, 1);
  if (!query) return shown.forEach((side) => side.start(facts));
  let requests;
  try {
    requests = shown.map((_, number) => requestOf(number ? "2" : ""));
  } catch (error) {
    return shown.forEach((side) => side.say(error.message, true));
  }
  requests.forEach((request, number) => (shown[number].heading.textContent = headingOf(shown[number], request)));
  const done = await Promise.all(requests.map((request, number) => shown[number].run(request)));
  if (compared() && done.every(Boolean) && done.length === 2) $("summary").textContent = compareSides(...sides);
  if ($("doc-id").value) await explainMissing({ ...requests[0], doc_id: $("doc-id").value });
}

function headingOf(side, { query, engine, version }) {
  return `${side.name}: ${query} · ${engine}${version ? ` · version ${version}` : ""}`;
}

function submit() {
  writeAddress();
  return runSearch();
}

function fillChoices() {
  const options = (names) => names.map(([value, text]) => element("option", { value, textContent: text }));
  const engines = ["auto", ...facts.engines].map((name) => [name, name]);
  const state = (version) => (version === facts.canary ? "canary" : version === facts.previous ? "previous" : "served");
  const open = [facts.version, facts.canary, facts.previous].filter((version) => version != null);
  const versions = [["", "as served"], ...open.map((version) => [String(version), `${version} (${state(version)})`])];
  for (const suffix of ["", "2"]) {
    $(`engine${suffix}`).replaceChildren(...options(engines));
    $(`version${suffix}`).replaceChildren(...options(versions));
    $(`version${suffix}`).closest("label").hidden = open.length < 2;
  }
}

function showNumFilters() {
  const number = numFilters();
  $("num-filters").textContent = number ? `(${number})` : "";
  $("clear").hidden = !number;
}

function openFilters(open) {
  $("filters").hidden = !open;
  $("show-filters").setAttribute("aria-expanded", String(open));
}

// Quality applies to the engine auto only.
function showQuality() {
  for (const suffix of ["", "2"]) $(`quality${suffix}`).closest("label").hidden = $(`engine${suffix}`).value !== "auto";
}

function fromAddress() {
  setCompared(readAddress().compared);
  showQuality();
  if (numFilters() && matchMedia("(min-width: 52rem)").matches) openFilters(true); // on a phone it would hide the results
  return runSearch();
}

async function start() {
  try {
    facts = await ask("index");
  } catch (error) {
    $("access").hidden = error.status !== 401;
    sides[0].clear();
    if (error.status === 401) $("token").focus();
    else sides[0].results.replaceChildren(element("li", { className: "state" }, failedElement(error, start)));
    return;
  }
  $("access").hidden = true;
  showIndexFacts(facts);
  showAdd(facts);
  fillChoices();
  buildFilters(facts.fields);
  await fromAddress();
}

function showTheme() {
  const theme = document.documentElement.dataset.theme;
  $("theme").textContent = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" }[theme];
}

function nextTheme() {
  const order = ["auto", "light", "dark"];
  const theme = order[(order.indexOf(document.documentElement.dataset.theme) + 1) % order.length];
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
  showTheme();
}

async function copyLink() {
  writeAddress();
  try {
    await navigator.clipboard.writeText(location.href);
    $("copied").textContent = "Copied";
  } catch {
    $("copied").textContent = "The address bar has the link";
  }
  setTimeout(() => ($("copied").textContent = ""), 3000);
}

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("search").addEventListener("change", (event) => {
  showQuality();
  showNumFilters();
  if (event.target.matches("select, [type=checkbox], [type=number], [type=date]") && $("query").value.trim()) submit();
});
$("compare").addEventListener("click", () => {
  setCompared(!compared());
  submit();
});
$("show-filters").addEventListener("click", () => openFilters($("filters").hidden));
$("clear").addEventListener("click", actions.clear);
$("copy").addEventListener("click", copyLink);
$("theme").addEventListener("click", nextTheme);
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  start();
});
$("add").addEventListener("submit", (event) => {
  event.preventDefault();
  addDocument(actions.refused);
});
$("why").addEventListener("submit", (event) => {
  event.preventDefault();
  writeAddress();
  explainMissing({ ...requestOf(""), doc_id: $("doc-id").value });
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) {
    event.preventDefault();
    $("query").select();
  }
  if (event.key === "Escape") sides.forEach((side) => choose(side.section, null));
});
addEventListener("popstate", fromAddress);
linkSides(sides);
showTheme();
start();
