// Adds a document by hand. Shown only if the service accepts writes.

import { ask } from "./api.js";
import { $ } from "./dom.js";

const POLL_MS = 300;

export function showAdd(facts) {
  $("add").hidden = !facts.writes;
}

// Sends the form as one document, and waits until searches see it.
export async function addDocument(refused) {
  const [id, title, text, metadata] = ["add-id", "add-title", "add-text", "add-metadata"].map((name) => $(name).value);
  try {
    const document = { ...(title && { title }), text, ...(metadata.trim() && { metadata: parsed(metadata) }) };
    const { position } = await ask(`documents?id=${encodeURIComponent(id)}`, document, undefined, "PUT");
    say("Accepted. Searches do not see it yet.");
    await visible(position);
  } catch (error) {
    say(error.message, true);
    if (error.status === 401 || error.status === 403) refused();
  }
}

function parsed(text) {
  let metadata = null;
  try {
    metadata = JSON.parse(text);
  } catch {
    // reported below
  }
  if (typeof metadata !== "object" || metadata === null || Array.isArray(metadata)) throw new Error('Metadata must be a JSON object, such as {"year": 2020}.');
  return metadata;
}

async function visible(position) {
  for (;;) {
    const { version, writes } = await ask("index");
    if (writes.log_position >= position) return say(`Searches see the document, in version ${version}.`);
    if (!writes.following) return say("Accepted. Searches see it when an operator loads the latest version.");
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

function say(text, wrong = false) {
  $("added").textContent = text;
  $("added").classList.toggle("error", wrong);
}
