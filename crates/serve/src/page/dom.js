// Elements, and words for numbers and names.
//
// Invariant: what comes from the server or is typed in becomes text, never markup: every node of
// the page is made by `element`, and no property that parses HTML is set in any module.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; a child that is a string becomes text. */
export function element(tag, attributes = {}, ...children) {
  const made = tag === "polyline" || tag === "line" || tag === "text"
    ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Sets a text only where it differs, so that a selection or a screen reader is not disturbed. */
export function setText(place, text, isError = false) {
  if (place.textContent !== text) place.textContent = text;
  place.classList.toggle("error", isError);
}

// Words for numbers and names.

/** A name with what cannot be seen, or would turn the text around, written as an escape. */
export const shown = (name) => String(name).replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu,
  (sign) => `\\u{${sign.codePointAt(0).toString(16)}}`);
export const HIDDEN = "…"; // for a node that the key does not show
export const bdi = (name, attributes = {}) => element("bdi", attributes, shown(name));
export const count = (number) => Number(number).toLocaleString("en");
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

export function inBytes(bytes) {
  const power = bytes < 1e3 ? 0 : bytes < 1e6 ? 1 : bytes < 1e9 ? 2 : bytes < 1e12 ? 3 : 4;
  const scaled = bytes / 1000 ** power;
  return `${power && scaled < 100 ? scaled.toFixed(1) : Math.round(scaled)}\u00a0` +
    ["B", "kB", "MB", "GB", "TB"][power];
}

export function inMs(ms) {
  return ms < 10 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : count(Math.round(ms));
}

export function inTime(seconds) {
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

export const inAge = (ms) => ms < 1000 ? "just now" : `${inTime(ms / 1000)} ago`;

export function inDate(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return shown(iso);
  return element("time", { datetime: iso, title: iso }, date.toLocaleString("sv").slice(0, 16));
}

export function inRanks(ranks) {
  if (!ranks?.length) return "";
  const [low, high] = [Math.min(...ranks), Math.max(...ranks)];
  return low === high ? `rank ${low}` : `rank ${low}–${high}`;
}

/** Fills a list of facts: pairs of a word and what it is; those without a value are left out. */
export function setFacts(place, facts) {
  place.replaceChildren(...facts.filter(([, value]) => value).flatMap(([word, value]) =>
    [element("dt", {}, word), element("dd", { dir: "auto" }, value)]));
}
