// The path to where the weights stand, a box for every node, and the switches that led there.

import { HIDDEN, bdi, byId, count, element, inAge, inBytes, inMs, inRanks, setText, shown }
  from "./dom.js";
import { known, short, status, wayTo } from "./known.js";
import { choose } from "./node.js";
import { rows } from "./tree.js";

const FRESH_SWITCH_MS = 5000; // how long what a switch added stays marked on the path

const kindAndSize = (node) => [inRanks(node?.ranks), node?.bytes ? inBytes(node.bytes) : ""]
  .filter(Boolean).join(" · ");

let pathShown = "";

export function showPath(latest) {
  const place = byId("path-boxes");
  const fresh = latest && latest.age_ms < FRESH_SWITCH_MS ? latest.added : [];
  const boxes = status.node == null ? [] : wayTo(status.node).map((name) => ({
    name,
    label: name === "/" ? "/" : shown(short(name)),
    note: name === "/" ? shown(status.model) : kindAndSize(known.get(name)),
    look: `box${name === status.node ? " stands" : ""}${fresh.includes(name) ? " added" : ""}`,
  }));
  const now = JSON.stringify(boxes);
  if (now !== pathShown) {
    pathShown = now;
    const had = document.activeElement?.dataset?.box;
    place.replaceChildren(...boxes.map(({ name, label, note, look }) => {
      const box = element("button", { type: "button", class: look, title: shown(name) },
        element("b", { dir: "auto" }, label), element("span", {}, note));
      box.dataset.box = name;
      if (name === status.node) box.setAttribute("aria-current", "true");
      box.addEventListener("click", () => choose(name));
      return element("li", {}, box);
    }));
    if (had) [...place.querySelectorAll("button")].find((box) => box.dataset.box === had)?.focus();
    if (!boxes.length) place.append(element("li", {}, "At a node that this key does not show."));
  }
  if (!latest) {
    setText(byId("last-switch"), "No switch yet.");
    return;
  }
  byId("last-switch").replaceChildren(element("span", {}, "Last switch"), ...changes(latest),
    element("span", {}, `${inMs(latest.ms)}\u00a0ms`), element("span", {}, inBytes(latest.bytes)),
    element("span", {}, inAge(latest.age_ms)));
}

/** What a switch subtracted and added, in the colours of the pictures. */
function changes(one) {
  const part = (name, sign, look) => element("span", { class: look, title: shown(name) },
    `${sign}\u00a0`, bdi(short(name)));
  return [...one.subtracted.map((name) => part(name, "−", "went")),
    ...one.added.map((name) => part(name, "+", "came"))];
}

const switchRows = new Map(); // number -> its list item

export function showSwitches(latest) {
  const list = byId("switch-list");
  const wanted = new Set(latest.map((one) => one.number));
  for (const [number, row] of switchRows) {
    if (!wanted.has(number)) {
      row.remove();
      switchRows.delete(number);
    }
  }
  for (const one of latest) {
    let row = switchRows.get(one.number);
    if (!row) {
      row = element("li", {},
        element("span", {}, bdi(one.from ?? HIDDEN), " → ",
          element("b", {}, bdi(one.to ?? HIDDEN))),
        element("span", {}, `${inMs(one.ms)}\u00a0ms · ${inBytes(one.bytes)}`),
        element("span", { class: "parts" }, ...changes(one)), element("span"));
      row.dataset.number = one.number;
      switchRows.set(one.number, row);
      list.prepend(row);
    }
    setText(row.lastChild, inAge(one.age_ms));
  }
  setText(byId("switches-all"), status.switches
    ? `${count(status.switches)} in all, ${inBytes(status.switched_bytes)}, ` +
      `${inMs(status.switch_ms / status.switches)}\u00a0ms on average` : "none yet");
}

/** Lights up what the newest switch took away and added; nothing moves if motion is unwanted. */
export function flash(one) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const glow = (target, colour) => target?.animate(
    [{ backgroundColor: `color-mix(in srgb, var(${colour}) 35%, transparent)` }, {}],
    { duration: 1500, easing: "ease-out" });
  for (const name of one.subtracted) glow(rows.get(name)?.line, "--away");
  for (const name of one.added) glow(rows.get(name)?.line, "--ours");
  for (const box of byId("path-boxes").querySelectorAll("button")) {
    if (one.added.includes(box.dataset.box)) glow(box, "--ours");
  }
  glow(switchRows.get(one.number), "--blue");
}

export function forgetPath() {
  pathShown = "";
  switchRows.clear();
  byId("switch-list").replaceChildren();
}
