// What a side shows while there are no results: the start, a search in progress, an empty answer and an error.

import { button, count, element } from "./dom.js";

const TITLES = {
  Unreachable: "The service cannot be reached",
  ShardUnavailable: "A part of the service does not answer",
  Overloaded: "The service is busy",
  InvalidRequest: "The request is not valid",
  ConfigError: "The request is not possible",
  Unauthenticated: "This service requires a token",
  Forbidden: "The token does not allow this",
};

export function startElement(facts) {
  return card(
    "start",
    `Search ${count(facts.num_docs, "document")}`,
    element("p", { textContent: "Ask a question, or describe what you are looking for. Words of a document that match the query are marked." }),
    element(
      "ul",
      {},
      ...[
        "Point at a word of the query to see what it matched, and at a score to see its parts.",
        "Compare shows two engines, versions or queries side by side.",
        "The address of the page is a link to the search.",
      ].map((text) => element("li", { textContent: text })),
    ),
    element("p", { className: "keys" }, element("kbd", { textContent: "/" }), " moves to the search box"),
  );
}

export function loadingElement() {
  const line = (className) => element("span", { className: `line ${className}` });
  const hit = () => element("div", { className: "hit skeleton" }, line("short"), line("tiny"), line(""), line("most"));
  return element("div", { "aria-hidden": "true" }, hit(), hit(), hit());
}

export function slowElement(seconds, cancel) {
  return element("span", {}, `Still searching, ${seconds} s. `, button("Cancel", { className: "inline" }, cancel));
}

export function emptyElement(filtered, clear) {
  if (!filtered) return card("empty", "No documents", element("p", { textContent: "The index has no document that could be returned." }));
  const text = element("p", { textContent: "No document meets the filters." });
  return card("empty", "Nothing found", text, button("Remove the filters", { className: "primary" }, clear));
}

export function failedElement(error, retry) {
  const again = button("Try again", { className: "primary" }, () => {
    clearInterval(timer);
    retry();
  });
  let timer = null;
  if (error.retryAfter) {
    let left = error.retryAfter;
    const say = () => (again.textContent = left > 0 ? `Try again (in ${left} s)` : "Try again");
    say();
    timer = setInterval(() => {
      left -= 1;
      say();
      if (left <= 0) {
        clearInterval(timer);
        if (again.isConnected) again.click();
      }
    }, 1000);
  }
  const made = card("failed", TITLES[error.kind] ?? "The search failed", element("p", { textContent: error.message }), again);
  made.setAttribute("role", "alert");
  return made;
}

// Returns what limits an answer: shard groups that were left out, truncated queries, and probable mistakes in the request.
export function noticeElement(answer) {
  const missing = Object.entries(answer.missing ?? {}).map(([name, reason]) => `${name}: ${reason}`);
  const lines = [
    ...(answer.coverage < 1 ? [`Only ${(100 * answer.coverage).toFixed(0)}% of the documents could be searched.`, ...missing] : []),
    ...(answer.truncated_queries ?? []).map((cut) => `Only the first ${cut.kept_tokens} of ${cut.total_tokens} tokens of the query were used.`),
    ...answer.warnings,
  ];
  return lines.length ? element("div", { className: "notice", role: "note" }, ...lines.map((text) => element("p", { textContent: text }))) : null;
}

function card(kind, title, ...content) {
  return element("div", { className: `card ${kind}` }, element("h3", { textContent: title }), ...content);
}
