// The first page of a service of several indexes: lists them, each with a link to its search page.
// Names and messages are only inserted as text nodes, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);

function facts(index) {
  if (index.state === "broken") return index.error;
  if (index.state === "closed") return "closed; the first search opens it";
  return `${index.num_docs.toLocaleString("en")} documents · version ${index.version} · open`;
}

function listed(index) {
  const item = document.createElement("li");
  const link = Object.assign(document.createElement("a"), { href: `indexes/${index.name}/`, textContent: index.name });
  const heading = document.createElement("h2");
  heading.append(link);
  item.className = "hit";
  const content = Object.assign(document.createElement("div"), { className: "content" });
  content.append(heading, Object.assign(document.createElement("p"), { className: "facts", textContent: facts(index) }));
  item.append(content);
  return item;
}

async function show() {
  const token = sessionStorage.getItem("token");
  const reply = await fetch("indexes", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  const answer = await reply.json();
  $("access").hidden = reply.status !== 401;
  $("status").classList.toggle("error", !reply.ok);
  $("status").textContent = reply.ok ? `${answer.indexes.length} indexes` : answer.error.message;
  $("results").replaceChildren(...(reply.ok ? answer.indexes.map(listed) : []));
}

$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  show();
});
show();
