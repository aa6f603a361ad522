// The page of `pleach serve`: a poll of /v1/status a second, shown by the other modules, and the key.

import { ApiError, hasKey, json, setKey, whenRefused } from "./call.js";
import { byId, count, inTime, setText, shown } from "./dom.js";
import { known, learn, setStatus, status } from "./known.js";
import { showLoad } from "./load.js";
import { choose, chosen } from "./node.js";
import { flash, forgetPath, showPath, showSwitches } from "./path.js";
import { forgetTree, refreshSoon, showTree } from "./tree.js";
import "./try.js";

const POLL_MS = 1000;
const LONGEST_WAIT_MS = 8000;

let stopped = false; // until a key is given
let polling = false;
let failures = 0;
let timer = 0;
let lastSwitch = 0;

async function poll() {
  clearTimeout(timer);
  if (document.hidden || stopped || polling) return;
  polling = true;
  let fresh = null;
  try {
    fresh = await json("v1/status", { signal: AbortSignal.timeout(LONGEST_WAIT_MS) });
    failures = 0;
    byId("lost").hidden = true;
    connection("live", "live");
  } catch (error) {
    if (!stopped) lost(error);
  }
  polling = false;
  timer = setTimeout(poll, Math.min(POLL_MS * 2 ** Math.max(0, failures - 1), LONGEST_WAIT_MS));
  if (fresh) show(fresh); // Last, so that a fault in here is not taken for a lost connection.
}

function lost(error) {
  failures += 1;
  const why = error instanceof ApiError ? error.message : "no answer";
  connection("lost", "not connected");
  byId("lost").hidden = false;
  setText(byId("lost"), `The server cannot be reached (${why}). What is shown may be old; ` +
    "the page goes on trying.");
}

function connection(state, text) {
  byId("connection").dataset.state = state;
  setText(byId("connection-text"), text);
}

document.addEventListener("visibilitychange", poll);

function show(fresh) {
  const other = status && (fresh.model !== status.model || fresh.uptime_s < status.uptime_s);
  if (other) forgetAll();
  const before = other ? null : status;
  setStatus(fresh);
  status.active = status.active.filter((one) => one.node != null);
  document.title = `${shown(status.model)} – pleach`;
  setText(byId("model"), shown(status.model));
  setText(byId("device"), `${shown(status.device)} · context ${count(status.context)} · ` +
    `up ${inTime(status.uptime_s)}`);
  setText(byId("version"), `pleach ${shown(status.version)}`);
  const latest = status.recent_switches ?? [];
  const news = before ? latest.filter((one) => one.number > lastSwitch) : [];
  lastSwitch = latest.at(-1)?.number ?? (other ? 0 : lastSwitch);
  showTree();
  showPath(latest.at(-1));
  showSwitches(latest);
  if (news.length) flash(news.at(-1));
  showLoad(before);
  learnMore();
  refreshSoon(before);
}

async function learnMore() {
  if (!await learn()) return;
  showTree();
  showPath(status.recent_switches?.at(-1));
}

function forgetAll() {
  known.clear();
  forgetTree();
  forgetPath();
  lastSwitch = 0;
}

// The key.

function askForKey(message) {
  stopped = true;
  setText(byId("key-note"), hasKey() ? `This key was refused: ${message}` : message, true);
  const field = byId("key-field");
  const appears = byId("key").hidden;
  showKey(true);
  if (appears) field.focus();
  connection("waiting", "a key is needed");
}

function showKey(yes) {
  byId("key").hidden = !yes;
  byId("key-open").setAttribute("aria-expanded", String(yes));
}

async function useKey(value) {
  if (/[^\x21-\x7e]/.test(value)) {
    setText(byId("key-note"), "A key is made of visible ASCII characters, without spaces.", true);
    return;
  }
  setKey(value);
  byId("key-field").value = "";
  setText(byId("key-note"), "");
  showKey(false);
  byId("key-open").focus();
  forgetAll();
  stopped = false;
  await poll();
  if (chosen) choose(chosen);
}

whenRefused(askForKey);
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key-field").value.trim());
});
byId("key-forget").addEventListener("click", () => useKey(""));
byId("key-open").addEventListener("click", () => {
  showKey(byId("key").hidden);
  if (!byId("key").hidden) byId("key-field").focus();
});

poll();
