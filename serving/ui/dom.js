// Creates and finds elements. Text is inserted as text nodes only, never as HTML.

export const $ = (id) => document.getElementById(id);

// Returns a new element. Names of properties with a dash are attributes.
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function button(text, properties, onclick) {
  const made = element("button", { type: "button", ...properties }, text);
  made.addEventListener("click", onclick);
  return made;
}

// Returns the characters of a text from `start` to `end`, counted in code points as the service does.
export const slice = (text, start, end) => Array.from(text).slice(start, end).join("");

export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
