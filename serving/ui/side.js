// One side of the page: the answer to one query with its own engine, quality and version. The page has one side, or two that are compared.

import { ask } from "./api.js";
import { element } from "./dom.js";
import { hitElements } from "./hit.js";
import { emptyElement, failedElement, loadingElement, noticeElement, slowElement, startElement } from "./states.js";
import { timingsElement } from "./facts.js";
import { wordButtons, wordsOf } from "./words.js";

const SKELETON_MS = 250; // until then, the results before stay as they are
const SLOW_MS = 3000;

export class Side {
  // `name` is A or B; `actions` has clear() to remove the filters and refused() for a missing token.
  constructor(section, name, actions) {
    this.section = section;
    this.name = name;
    this.actions = actions;
    this.heading = section.querySelector("h2");
    this.status = section.querySelector(".status");
    this.notice = section.querySelector(".notices");
    this.words = section.querySelector(".words");
    this.results = section.querySelector(".results");
    this.more = section.querySelector(".more");
    this.pending = null;
    this.answer = null;
  }

  start(facts) {
    this.pending?.abort();
    this.clear();
    this.results.replaceChildren(element("li", { className: "state" }, startElement(facts)));
  }

  clear(status = "") {
    this.answer = null;
    this.say(status);
    this.notice.replaceChildren();
    this.words.replaceChildren();
    this.more.replaceChildren();
    this.results.replaceChildren();
  }

  say(text, wrong = false) {
    this.status.replaceChildren(text);
    this.status.classList.toggle("error", wrong);
  }

  // Shows the answer to a request; returns whether there is one.
  async run(request) {
    this.pending?.abort();
    const controller = (this.pending = new AbortController());
    this.section.setAttribute("aria-busy", "true");
    const timers = this.watch(controller);
    const filtered = request.filters !== undefined;
    try {
      const answer = await ask("search", { ...request, explain: true, highlight: true, min_coverage: 0 }, controller.signal);
      if (this.pending === controller) this.show(request.query, answer, filtered);
      return this.pending === controller;
    } catch (error) {
      if (this.pending !== controller) return false;
      this.clear(controller.signal.aborted ? "Cancelled" : "");
      if (controller.signal.aborted) return false;
      if (error.status === 401) this.actions.refused();
      this.results.replaceChildren(element("li", { className: "state" }, failedElement(error, () => this.actions.retry(this))));
      return false;
    } finally {
      timers.forEach(clearTimeout);
      if (this.pending === controller) this.section.removeAttribute("aria-busy");
    }
  }

  // Shows that a search takes long: first grey lines, then the seconds and a way to cancel.
  watch(controller) {
    const start = performance.now();
    const skeleton = setTimeout(() => {
      this.clear("Searching…");
      this.results.replaceChildren(element("li", { className: "state" }, loadingElement()));
    }, SKELETON_MS);
    const slow = setTimeout(() => this.say(slowElement(SLOW_MS / 1000, () => controller.abort())), SLOW_MS);
    const ticking = setInterval(() => {
      const text = this.status.querySelector("span")?.firstChild;
      if (text) text.data = `Still searching, ${Math.floor((performance.now() - start) / 1000)} s. `;
    }, 1000);
    return [skeleton, slow, ticking];
  }

  show(query, answer, filtered) {
    const hits = answer.results[0];
    const words = wordsOf(query, answer.query_tokens[0]);
    this.answer = answer;
    this.words.replaceChildren(...(hits.length ? wordButtons(words, this.section) : []));
    const notice = noticeElement(answer);
    this.notice.replaceChildren(...(notice ? [notice] : []));
    this.results.replaceChildren(...hitElements(answer, words));
    if (!hits.length) this.results.replaceChildren(element("li", { className: "state" }, emptyElement(filtered, this.actions.clear)));
    const found = hits.length === 1 ? "1 document" : `${hits.length} documents`;
    this.say(`${found} in ${answer.timings.total.toFixed(0)} ms · ${answer.engine} · index version ${answer.index_version}`);
    this.more.replaceChildren(timingsElement(answer));
  }
}
