// Facts below the results: the time of each step and the parameters of the engine, and the served index.

import { $, count, element } from "./dom.js";

export function timingsElement(answer) {
  const { encode, plan, stages, documents, explain } = answer.timings;
  const steps = [["encode the query", encode], ["plan", plan]];
  stages.forEach((milliseconds, number) => steps.push([`stage ${number + 1} of ${answer.engine}`, milliseconds]));
  steps.push(["fetch documents", documents], ["explain", explain]);
  const bar = steps.map(([name, milliseconds]) => {
    const part = element("span", { title: name });
    part.style.flexGrow = milliseconds;
    return part;
  });
  const parameters = Object.entries(answer.params[0]).map(([name, value]) => [name, String(value)]);
  const rows = [...steps.map(([name, milliseconds]) => [name, `${milliseconds.toFixed(1)} ms`]), ...parameters];
  return element(
    "details",
    { className: "timings" },
    element("summary", { textContent: "Time and parameters" }),
    element("div", { className: "bar", "aria-hidden": "true" }, ...bar),
    listElement(rows),
  );
}

export function showIndexFacts(facts) {
  const canary = facts.canary == null ? [] : [["canary", `version ${facts.canary}, ${(100 * facts.traffic_fraction).toFixed(0)}% of the requests`]];
  const deleted = facts.num_deleted ? [["deleted", count(facts.num_deleted, "document")]] : [];
  const served = location.pathname.match(/\/indexes\/([^/]+)\/$/); // a service of several indexes
  $("index-name").textContent = served ? decodeURIComponent(served[1]) : "";
  $("all-indexes").hidden = !served;
  $("size").textContent = `${count(facts.num_docs, "document")}, version ${facts.version}`;
  $("index").replaceChildren(
    element("summary", { textContent: "About the index" }),
    listElement([
      ...canary,
      ...deleted,
      ["tokens", facts.num_tokens.toLocaleString("en")],
      ["centroids", facts.num_centroids.toLocaleString("en")],
      ["bits a dimension", String(facts.nbits)],
      ["shards", `${facts.num_shards} in ${count(facts.num_groups, "group")}`],
      ["encoder", facts.contract.checkpoint],
      ["fingerprint", facts.fingerprint],
    ]),
  );
  $("index").hidden = false;
}

function listElement(rows) {
  return element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]));
}
