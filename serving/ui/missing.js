// Why is a document not found? Follows one document through the stages of the search.

import { ask } from "./api.js";
import { $, element } from "./dom.js";

export async function explainMissing(request) {
  const shown = $("reason");
  shown.setAttribute("aria-busy", "true");
  try {
    const explanation = await ask("explain", request);
    const row = (tag, cells) => element("tr", {}, ...cells.map((cell) => element(tag, { textContent: cell, ...(tag === "th" && { scope: "col" }) })));
    const stages = explanation.stages.map((stage) =>
      row("td", [stage.name, stage.score?.toFixed(3) ?? "–", stage.cut?.toFixed(3) ?? "–", stage.num_kept, stage.survived ? "yes" : "no"]),
    );
    const head = element("thead", {}, row("th", ["stage", "its score", "lowest kept", "kept", "survived"]));
    const table = element("table", {}, head, element("tbody", {}, ...stages));
    const scrolled = element("div", { className: "scrolled", tabIndex: 0, role: "region", "aria-label": "Stages" }, table);
    shown.replaceChildren(element("p", { textContent: explanation.reason }), scrolled);
  } catch (error) {
    shown.replaceChildren(element("p", { className: "error", textContent: error.message }));
  } finally {
    shown.removeAttribute("aria-busy");
  }
}
