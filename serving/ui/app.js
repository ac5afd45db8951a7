// The search page: sends POST /search with `explain`, and shows what each word of the query matched.
// Text of documents is only inserted as text nodes, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const LEVELS = 5;
let words = []; // words of the query: {text, tokens: [numbers], special}
let pending = null; // AbortController of the request in progress

async function ask(path, body) {
  const token = sessionStorage.getItem("token");
  const headers = { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
  const options = body ? { method: "POST", body: JSON.stringify(body), signal: pending?.signal } : {};
  const reply = await fetch(path, { headers, ...options });
  const answer = await reply.json();
  if (reply.status === 401) $("access").hidden = false;
  if (!reply.ok) throw new Error(answer.error.message);
  return answer;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Adjacent tokens are one word. Special tokens, which are not in the text, become one last word.
function wordsOf(query, tokens) {
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

// The highlights of a field, each with the numbers of the query's words that matched it.
function spansOf(hit, field) {
  return hit.highlights
    .filter((mark) => mark.field === field)
    .map(({ start, end, strength, query_tokens }) => {
      const matched = words.flatMap((word, number) => (word.tokens.some((token) => query_tokens.includes(token)) ? [number] : []));
      return { start, end, strength, words: new Set(matched) };
    });
}

function highlighted(tag, className, text, spans, strongest) {
  const points = Array.from(text);
  const made = element(tag, { className });
  let at = 0;
  for (const span of spans) {
    if (span.start < at) continue;
    made.append(points.slice(at, span.start).join(""));
    const level = Math.ceil((LEVELS * span.strength) / strongest);
    const mark = element("mark", { className: level ? `m${level}` : "" }, points.slice(span.start, span.end).join(""));
    const names = [...span.words].map((number) => words[number].text);
    mark.title = `matches ${names.join(", ")} (${span.strength.toFixed(2)})`;
    mark.dataset.words = [...span.words].join(" ");
    made.append(mark);
    at = span.end;
  }
  made.append(points.slice(at).join(""));
  return made;
}

function hitElement(hit, rank, spans, strongest) {
  const facts = `${rank}. ${hit.doc_id} · score ${hit.score.toFixed(3)}`;
  const made = element("li", { className: "hit" });
  if (hit.title) made.append(highlighted("h2", "", hit.title, spans.title, strongest));
  made.append(element("p", { className: "facts", textContent: facts }));
  if (Object.keys(hit.metadata).length) made.append(metadataElement(hit.metadata));
  const { text, start, more } = hit.snippet;
  const whole = highlighted("p", "text", hit.text, spans.text, strongest);
  if (start || more) {
    const length = Array.from(text).length;
    const inside = spans.text
      .filter((span) => span.start >= start && span.end <= start + length)
      .map((span) => ({ ...span, start: span.start - start, end: span.end - start }));
    const passage = highlighted("p", "text", text, inside, strongest);
    if (start) passage.prepend("… ");
    if (more) passage.append(" …");
    whole.hidden = true;
    made.append(passage, whole, unfolding(passage, whole));
  } else made.append(whole);
  made.dataset.id = hit.doc_id;
  return made;
}

const SHORT = 60; // longest shown metadata value, in characters
const SHOWN = 6; // shown metadata fields

function metadataElement(metadata) {
  const shown = Object.entries(metadata)
    .slice(0, SHOWN)
    .map(([name, value]) => {
      const text = typeof value === "string" ? value : JSON.stringify(value);
      return `${name}: ${text.length > SHORT ? `${text.slice(0, SHORT)}…` : text}`;
    });
  return element("p", { className: "facts metadata", textContent: shown.join(" · "), title: JSON.stringify(metadata, null, 1) });
}

function unfolding(passage, whole) {
  const button = element("button", { type: "button", className: "unfold", textContent: "Show all" });
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => {
    passage.hidden = whole.hidden;
    whole.hidden = !whole.hidden;
    button.textContent = whole.hidden ? "Show all" : "Show less";
    button.setAttribute("aria-expanded", String(!whole.hidden));
  });
  return button;
}

function showWords() {
  const buttons = words.map((word, number) => {
    const button = element("button", { type: "button", className: word.special ? "word special" : "word", textContent: word.text });
    for (const event of ["mouseenter", "focus"]) button.addEventListener(event, () => choose(number));
    for (const event of ["mouseleave", "blur"]) button.addEventListener(event, () => choose(null));
    return button;
  });
  $("words").replaceChildren(...buttons);
  $("words").hidden = false;
}

// Shows the matches of one word of the query; null: the matches of all words.
function choose(number) {
  document.body.classList.toggle("chosen", number !== null);
  [...$("words").children].forEach((button, each) => button.classList.toggle("on", each === number));
  for (const mark of document.querySelectorAll("mark"))
    mark.classList.toggle("on", number !== null && mark.dataset.words.split(" ").includes(String(number)));
}

function showAnswer(query, answer) {
  const hits = answer.results[0];
  words = wordsOf(query, answer.query_tokens[0]);
  showWords();
  const spans = hits.map((hit) => ({
    title: spansOf(hit, "title"),
    text: spansOf(hit, "text"),
  }));
  const strengths = spans.flatMap((each) => [...each.title, ...each.text].map((span) => span.strength));
  const strongest = Math.max(1e-9, ...strengths);
  $("results").replaceChildren(...hits.map((hit, number) => hitElement(hit, number + 1, spans[number], strongest)));
  const covered = answer.coverage < 1 ? ` · only ${(100 * answer.coverage).toFixed(0)}% of the documents could be searched` : "";
  const found = hits.length === 1 ? "1 document" : `${hits.length} documents`;
  const cut = (answer.truncated_queries ?? []).map((each) => ` · only the first ${each.kept_tokens} of ${each.total_tokens} tokens of the query were used`).join("");
  const warned = answer.warnings.map((warning) => ` · ${warning}`).join("");
  const summary = `${found} in ${answer.timings.total.toFixed(0)} ms · ${answer.engine} · index version ${answer.index_version}`;
  say(summary + covered + cut + warned, covered + cut + warned !== "");
  showTimings(answer);
  $("why").hidden = false;
  $("reason").replaceChildren();
}

function showTimings(answer) {
  const { encode, plan, stages, documents, explain } = answer.timings;
  const steps = [["encode the query", encode], ["plan", plan]];
  stages.forEach((milliseconds, number) => steps.push([`stage ${number + 1} of ${answer.engine}`, milliseconds]));
  steps.push(["fetch documents", documents], ["explain", explain]);
  const bar = steps.map(([name, milliseconds]) => {
    const part = element("span", { title: name });
    part.style.flexGrow = milliseconds;
    return part;
  });
  $("timings").querySelector("summary").textContent = `Time and parameters`;
  $("timings").querySelector(".bar").replaceChildren(...bar);
  const parameters = Object.entries(answer.params[0]).map(([name, value]) => [name, String(value)]);
  define($("timings"), [...steps.map(([name, milliseconds]) => [name, `${milliseconds.toFixed(1)} ms`]), ...parameters]);
}

function define(details, rows) {
  details.querySelector("dl").replaceChildren(
    ...rows.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]),
  );
  details.hidden = false;
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", wrong);
}

function choices() {
  return { k: Number($("k").value), engine: $("engine").value, quality: $("quality").value };
}

// The text of the filter box is sent unchanged: conditions such as year >= 2020, tags ~ news, or JSON.
function filters() {
  const text = $("filter").value.trim();
  return text ? { filters: text } : {};
}

async function search() {
  const query = $("query").value.trim();
  if (!query) return;
  pending?.abort();
  const controller = (pending = new AbortController());
  document.body.classList.add("busy");
  document.title = `${query} – Search`;
  try {
    showAnswer(query, await ask("search", { query, ...choices(), ...filters(), explain: true, highlight: true, min_coverage: 0 }));
  } catch (error) {
    if (controller.signal.aborted) return;
    say(error.message, true);
  }
  if (pending === controller) document.body.classList.remove("busy");
}

async function explainMissing(event) {
  event.preventDefault();
  try {
    const explanation = await ask("explain", { query: $("query").value.trim(), doc_id: $("doc-id").value, ...choices(), ...filters() });
    const row = (tag, cells) => element("tr", {}, ...cells.map((cell) => element(tag, { textContent: cell })));
    const stages = explanation.stages.map((stage) =>
      row("td", [stage.name, stage.score?.toFixed(3) ?? "–", stage.cut?.toFixed(3) ?? "–", stage.num_kept, stage.survived ? "yes" : "no"]),
    );
    const table = element("table", {}, row("th", ["stage", "its score", "lowest kept", "kept", "survived"]), ...stages);
    $("reason").replaceChildren(element("p", { textContent: explanation.reason }), table);
  } catch (error) {
    $("reason").replaceChildren(element("p", { textContent: error.message }));
  }
}

async function showIndex() {
  const facts = await ask("index");
  $("access").hidden = true;
  $("engine").replaceChildren(...["auto", ...facts.engines].map((name) => element("option", { textContent: name })));
  $("index").querySelector("summary").textContent = `${facts.num_docs.toLocaleString("en")} documents, version ${facts.version}`;
  const canary = facts.canary === null ? [] : [["canary", `version ${facts.canary}, ${(100 * facts.traffic_fraction).toFixed(0)}% of the requests`]];
  const deleted = facts.num_deleted ? [["deleted", `${facts.num_deleted.toLocaleString("en")} documents`]] : [];
  define($("index"), [
    ...canary,
    ...deleted,
    ["tokens", facts.num_tokens.toLocaleString("en")],
    ["centroids", facts.num_centroids.toLocaleString("en")],
    ["bits a dimension", String(facts.nbits)],
    ["shards", `${facts.num_shards} in ${facts.num_groups} groups`],
    ["encoder", facts.contract.checkpoint],
    ["fingerprint", facts.fingerprint],
  ]);
}

// The URL holds the search, so it can be shared and the Back button works.
function fromAddress() {
  const parameters = new URLSearchParams(location.search);
  $("query").value = parameters.get("q") ?? "";
  $("filter").value = parameters.get("filter") ?? "";
  for (const [id, usual] of Object.entries({ k: "10", engine: "auto", quality: "balanced" })) {
    $(id).value = parameters.get(id) ?? usual;
    if (!$(id).value) $(id).value = usual; // not one of the choices
  }
  matters();
  return search();
}

// Quality applies to the engine auto only.
function matters() {
  $("quality").disabled = $("engine").value !== "auto";
}

async function start() {
  try {
    await showIndex();
    await fromAddress();
  } catch (error) {
    say(error.message, true);
  }
}

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  history.pushState(null, "", `?${new URLSearchParams(new FormData($("search")))}`);
  search();
});
for (const id of ["engine", "quality", "k"])
  $(id).addEventListener("change", () => {
    matters();
    if ($("query").value.trim()) $("search").requestSubmit();
  });
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  start();
});
$("why").addEventListener("submit", explainMissing);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) {
    event.preventDefault();
    $("query").select();
  }
  if (event.key === "Escape") choose(null);
});
addEventListener("popstate", fromAddress);
start();
