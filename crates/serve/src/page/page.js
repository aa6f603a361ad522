// The page of `pleach serve`: a poll of /v1/status a second, the tree level by level, two streams.
//
// Invariant: what comes from the server or is typed in becomes text, never markup: every node of
// the page is made by `element`, and no property that parses HTML is set anywhere. Addresses are
// relative, so the page works below a proxy's prefix, too.

const POLL_MS = 1000;
const LONGEST_WAIT_MS = 8000;
const PAGE = 100; // children of a node asked for at once
const WINDOW_S = 120; // what the charts show
const REFRESH_MS = 5000; // open levels are read again at most this often
const FRESH_SWITCH_MS = 5000; // how long what a switch added stays marked on the path

const byId = (id) => document.getElementById(id);

/** An element with attributes and children; a child that is a string becomes text. */
function element(tag, attributes = {}, ...children) {
  const made = tag === "polyline" || tag === "line" || tag === "text"
    ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Sets a text only where it differs, so that a selection or a screen reader is not disturbed. */
function setText(place, text, isError = false) {
  if (place.textContent !== text) place.textContent = text;
  place.classList.toggle("error", isError);
}

// Words for numbers and names.

/** A name with what cannot be seen, or would turn the text around, written as an escape. */
const shown = (name) => String(name).replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu,
  (sign) => `\\u{${sign.codePointAt(0).toString(16)}}`);
const HIDDEN = "…"; // for a node that the key does not show
const bdi = (name, attributes = {}) => element("bdi", attributes, shown(name));
const count = (number) => Number(number).toLocaleString("en");
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

function inBytes(bytes) {
  const power = bytes < 1e3 ? 0 : bytes < 1e6 ? 1 : bytes < 1e9 ? 2 : bytes < 1e12 ? 3 : 4;
  const scaled = bytes / 1000 ** power;
  return `${power && scaled < 100 ? scaled.toFixed(1) : Math.round(scaled)}\u00a0` +
    ["B", "kB", "MB", "GB", "TB"][power];
}

function inMs(ms) {
  return ms < 10 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : count(Math.round(ms));
}

function inTime(seconds) {
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

const inAge = (ms) => ms < 1000 ? "just now" : `${inTime(ms / 1000)} ago`;

function inDate(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return shown(iso);
  return element("time", { datetime: iso, title: iso }, date.toLocaleString("sv").slice(0, 16));
}

function inRanks(ranks) {
  if (!ranks?.length) return "";
  const [low, high] = [Math.min(...ranks), Math.max(...ranks)];
  return low === high ? `rank ${low}` : `rank ${low}–${high}`;
}

// Calls.

class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let key = "";
try {
  key = sessionStorage.getItem("pleach-key") ?? "";
} catch {
  // Storage may be forbidden; the key then lives as long as the page.
}

/** Calls a route; an answer other than 2xx is thrown with the server's own message. */
async function call(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  const answer = await fetch(path, {
    method, headers, signal, body: body && JSON.stringify(body), cache: "no-store",
  });
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = text.slice(0, 500) || answer.statusText;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // A proxy answers in its own way.
  }
  message = shown(String(message).replaceAll("\n", " ")); // It may repeat a name.
  if (answer.status === 401) askForKey(message);
  throw new ApiError(answer.status, `${answer.status}: ${message}`);
}

const json = async (path, options) => (await call(path, options)).json();
const nodeRoute = (name) => `v1/tree/nodes/${encodeURIComponent(name)}`;

// The key: kept for this tab alone, sent as a bearer token.

function askForKey(message) {
  stopped = true;
  setText(byId("key-note"), key ? `This key was refused: ${message}` : message, true);
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
  key = value;
  try {
    if (key) sessionStorage.setItem("pleach-key", key);
    else sessionStorage.removeItem("pleach-key");
  } catch {
    // As above.
  }
  byId("key-field").value = "";
  setText(byId("key-note"), "");
  showKey(false);
  byId("key-open").focus();
  forgetTree();
  stopped = false;
  await poll();
  if (chosen) choose(chosen);
}

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key-field").value.trim());
});
byId("key-forget").addEventListener("click", () => useKey(""));
byId("key-open").addEventListener("click", () => {
  showKey(byId("key").hidden);
  if (!byId("key").hidden) byId("key-field").focus();
});

// The poll.

let status = null;
let stopped = false; // until a key is given
let polling = false;
let failures = 0;
let timer = 0;

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
  if (other) {
    forgetTree();
    samples.length = 0;
  }
  const before = other ? null : status;
  status = fresh;
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
  addSample(before);
  showCharts();
  showMeters();
  showCounts();
  learn();
  refreshSoon(before);
}

// What is known of the tree. A node's parent is usually the path above it, but `tree.toml` may say
// otherwise, so nodes that the status names are asked for before their way is taken for certain.

const known = new Map(); // name -> Node, or null where the server does not show it
let lastSwitch = 0;
let learning = false;

function parentOf(name) {
  if (name === "/") return null;
  const parent = known.get(name)?.parent;
  if (parent) return parent;
  const slash = name.lastIndexOf("/");
  return slash > 0 ? name.slice(0, slash) : "/";
}

/** The way from the root to a node. */
function wayTo(name) {
  const way = [];
  for (let at = name; at !== null && way.length < 100; at = parentOf(at)) way.unshift(at);
  return way;
}

/** A node's name without its parent's. */
function short(name) {
  const parent = parentOf(name);
  return parent && name.startsWith(`${parent}/`) ? name.slice(parent.length + 1) : name;
}

/** Asks for a few nodes that the status names and nothing is known of yet. */
async function learn() {
  if (learning) return;
  learning = true;
  if (known.size > 20000) known.clear();
  const named = [status.node, ...status.active.map((one) => one.node)].filter(Boolean);
  // A part of a name between two nodes is no node; it is asked for once and remembered as null.
  const wanted = new Set(named.flatMap((name) => known.has(name) ? wayTo(name) : [name]));
  let asked = 0;
  for (const name of wanted) {
    if (name === "/" || known.has(name) || asked >= 6) continue;
    asked += 1;
    try {
      known.set(name, await json(nodeRoute(name)));
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404) break;
      known.set(name, null);
    }
  }
  learning = false;
  if (asked) {
    showTree();
    showPath(status.recent_switches?.at(-1));
  }
}

const kindAndSize = (node) => [inRanks(node?.ranks), node?.bytes ? inBytes(node.bytes) : ""]
  .filter(Boolean).join(" · ");

// The path: a box for every node on the way to where the weights stand.

let pathShown = "";

function showPath(latest) {
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

// Switches.

const switchRows = new Map(); // number -> its list item

function showSwitches(latest) {
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
function flash(one) {
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

// The tree: nested lists in the ARIA tree pattern. One item is in the tab order at a time.

const tree = byId("tree");
const rows = new Map(); // name -> row
let root = null;
let chosen = "";
let painted = new Set(); // rows that carry a mark of the status
let stale = false; // what is in memory has changed since the tree was read
let refreshed = 0; // when it was read again last

function makeRow(name, node) {
  const line = element("div", { class: "row" });
  const item = element("li", { role: "treeitem", tabindex: "-1", "aria-selected": "false" }, line);
  item.dataset.node = name;
  const row = { name, node, item, line, group: null, children: [], more: null, open: false };
  row.marks = element("span", { class: "row-marks" });
  rows.set(name, row);
  const label = name === "/" ? "/" : shown(short(name));
  row.info = element("span", { class: "info" });
  line.append(element("span", { class: "twist" }),
    element("bdi", { class: "label", title: shown(name) }, label), row.info);
  setNode(row, node);
  return row;
}

function setNode(row, node) {
  row.node = node;
  if (node && row.name !== "/") known.set(row.name, node);
  const size = row.name === "/" ? shown(status?.model ?? "") : inRanks(node.ranks);
  row.info.replaceChildren(size);
  if (row.name !== "/" && node.bytes) {
    row.info.append(element("span", { class: "bytes" }, ` · ${inBytes(node.bytes)}`));
  }
  if (node.has_children || row.children.length) row.item.ariaExpanded = String(row.open);
  else row.item.removeAttribute("aria-expanded");
  paint(row);
}

/** The marks of a row: dot, memory, badges; and the same in words for a screen reader. */
function paint(row, mark = row.mark ?? {}) {
  row.mark = mark;
  const inMemory = row.node?.state?.loaded && row.name !== "/";
  const marks = [];
  const words = [shown(row.name), row.info.textContent];
  const add = (look, text, title) => {
    marks.push(element("span", { class: look, title }, text));
    words.push(title);
  };
  if (mark.stands) add("dot here", "", "the weights stand here");
  if (mark.standsBelow) add("dot below", "", "the weights stand below");
  if (inMemory) add("memory", "", "delta in memory");
  const where = mark.below ? ", some below" : "";
  if (mark.running) add("badge running", `${count(mark.running)} running`,
    `${count(mark.running)} running${where}`);
  if (mark.waiting) add("badge waiting", `${count(mark.waiting)} waiting`,
    `${count(mark.waiting)} waiting${where}`);
  row.item.classList.toggle("way", Boolean(mark.way));
  const label = words.filter(Boolean).join(", ");
  if (label === row.words) return;
  row.words = label;
  row.item.ariaLabel = label;
  while (row.line.children.length > 3) row.line.lastChild.remove();
  row.line.append(...marks);
}

/** The nearest row that can be seen on the way up from a node. */
function visibleRow(name) {
  const way = wayTo(name);
  let at = root;
  for (const part of way.slice(1)) {
    const row = rows.get(part);
    if (!row) continue;
    if (!at.open) break;
    at = row;
  }
  return at;
}

/** Puts the status's marks into the tree. */
function showTree() {
  if (!status) return;
  if (!root) startTree();
  const marks = new Map();
  const markOf = (row) => {
    if (!marks.has(row)) marks.set(row, {});
    return marks.get(row);
  };
  for (const { node, running, waiting } of status.active) {
    const row = visibleRow(node);
    const mark = markOf(row);
    mark.running = (mark.running ?? 0) + running;
    mark.waiting = (mark.waiting ?? 0) + waiting;
    if (row.name !== node) mark.below = true;
  }
  if (status.node != null) {
    for (const name of wayTo(status.node)) {
      if (rows.has(name)) markOf(rows.get(name)).way = true;
    }
    const row = visibleRow(status.node);
    markOf(row)[row.name === status.node ? "stands" : "standsBelow"] = true;
  }
  for (const row of painted) if (!marks.has(row)) paint(row, {});
  for (const [row, mark] of marks) paint(row, mark);
  painted = new Set(marks.keys());
}

function startTree() {
  root = makeRow("/", { has_children: true, state: {} });
  tree.replaceChildren(root.item);
  root.item.tabIndex = 0;
  open(root);
}

function forgetTree() {
  rows.clear();
  known.clear();
  painted.clear();
  switchRows.clear();
  byId("switch-list").replaceChildren();
  tree.replaceChildren();
  root = null;
  pathShown = "";
  lastSwitch = 0;
}

/** One page of a node's children. */
function childrenOf(name, after, limit) {
  const query = new URLSearchParams({ limit });
  if (after) query.set("after", after);
  const route = name === "/" ? "v1/tree/children" : `${nodeRoute(name)}/children`;
  return json(`${route}?${query}`);
}

async function open(row) {
  if (row.name !== "/" && !row.node.has_children && !row.children.length) return;
  row.open = true;
  row.item.ariaExpanded = "true";
  if (!row.group) {
    row.group = element("ul", { role: "group" });
    row.item.append(row.group);
  }
  row.group.hidden = false;
  showTree();
  await reload(row);
}

function close(row) {
  if (!row.open) return;
  row.open = false;
  row.item.ariaExpanded = "false";
  row.group.hidden = true;
  showTree();
}

/** Reads a level again, as many children as were shown, and keeps the rows that are still there. */
async function reload(row, wanted = row.children.length) {
  if (row.busy) return;
  row.busy = true;
  row.item.ariaBusy = "true";
  try {
    const found = [];
    let page;
    do {
      const limit = Math.max(PAGE, Math.min(5 * PAGE, wanted - found.length));
      page = await childrenOf(row.name, found.at(-1)?.node, limit);
      found.push(...page.children);
    } while (page.has_more && page.children.length && found.length < wanted);
    if (rows.get(row.name) === row) setChildren(row, found, page.has_more);
    setText(byId("tree-note"), "");
  } catch (error) {
    setText(byId("tree-note"), `${shown(row.name)}: ${error.message}`, true);
  } finally {
    row.busy = false;
    row.item.ariaBusy = "false";
  }
}

async function loadMore(row) {
  if (row.busy) return;
  row.busy = true;
  // The further someone goes on, the larger the steps.
  const limit = row.children.length >= 3 * PAGE ? 5 * PAGE : PAGE;
  try {
    const page = await childrenOf(row.name, row.children.at(-1)?.name, limit);
    if (rows.get(row.name) !== row) return; // The tree was begun anew meanwhile.
    const first = page.children[0]?.node;
    const hadFocus = document.activeElement === row.more;
    setChildren(row, [...row.children.map((child) => child.node), ...page.children],
      page.has_more);
    if (hadFocus && first) focusItem(rows.get(first).item);
  } catch (error) {
    setText(byId("tree-note"), `${shown(row.name)}: ${error.message}`, true);
  } finally {
    row.busy = false;
  }
}

function setChildren(row, nodes, hasMore) {
  const names = new Set(nodes.map((node) => node.node));
  for (const child of row.children) if (!names.has(child.name)) dropRow(child);
  row.children = nodes.map((node) => {
    const old = rows.get(node.node);
    if (old) setNode(old, node);
    else known.set(node.node, node);
    return old ?? makeRow(node.node, node);
  });
  // An item that stands where it should is not touched: moving it would take the focus from it.
  let at = row.group.firstChild;
  for (const child of row.children) {
    if (child.item === at) at = at.nextSibling;
    else row.group.insertBefore(child.item, at);
  }
  if (hasMore && !row.more) {
    row.more = element("li", { role: "treeitem", tabindex: "-1", class: "more" },
      element("div", { class: "row" }));
    row.more.dataset.more = row.name;
  }
  if (row.more) {
    setText(row.more.firstChild, `${count(row.children.length)} shown, more…`);
    if (!hasMore) {
      if (document.activeElement === row.more) focusItem(row.item);
      row.more.remove();
      row.more = null;
    } else if (row.group.lastChild !== row.more) {
      row.group.append(row.more);
    }
  }
  row.item.ariaExpanded = String(row.open);
  showTree();
}

function dropRow(row) {
  for (const child of row.children) dropRow(child);
  if (row.item.contains(document.activeElement)) focusItem(rows.get(parentOf(row.name))?.item);
  row.item.remove();
  rows.delete(row.name);
  known.delete(row.name);
}

/** Reads open levels again when what is in memory has changed. */
function refreshSoon(before) {
  const sign = ({ cache, device_cache: device }) => [cache, device].map((one) =>
    one ? `${one.nodes} ${one.misses} ${one.evictions}` : "").join();
  stale ||= Boolean(before) && sign(before) !== sign(status);
  if (stale && Date.now() - refreshed > REFRESH_MS) refreshTree();
}

function refreshTree() {
  stale = false;
  refreshed = Date.now();
  const walk = (row) => {
    if (!row?.open) return;
    reload(row);
    row.children.forEach(walk);
  };
  walk(root);
}

byId("tree-refresh").addEventListener("click", refreshTree);

function focusItem(item) {
  if (!item) return;
  const old = tree.querySelector('[tabindex="0"]');
  if (old) old.tabIndex = -1;
  item.tabIndex = 0;
  item.focus({ preventScroll: true });
  item.firstChild.scrollIntoView({ block: "nearest", inline: "nearest" });
}

const itemAbove = (item) => item.parentElement.closest('[role="treeitem"]');
const firstBelow = (item) => item.ariaExpanded === "true"
  ? item.querySelector('[role="treeitem"]') : null;

function nextItem(item) {
  const below = firstBelow(item);
  if (below) return below;
  for (let at = item; at; at = itemAbove(at)) {
    if (at.nextElementSibling?.role === "treeitem") return at.nextElementSibling;
  }
  return null;
}

function lastWithin(item) {
  let at = item;
  while (firstBelow(at)) at = at.lastElementChild.lastElementChild;
  return at;
}

function previousItem(item) {
  const before = item.previousElementSibling;
  return before?.role === "treeitem" ? lastWithin(before) : itemAbove(item);
}

tree.addEventListener("keydown", (event) => {
  const item = event.target.closest('[role="treeitem"]');
  if (!item || event.ctrlKey || event.altKey || event.metaKey) return;
  const row = rows.get(item.dataset.node);
  const act = {
    ArrowDown: () => focusItem(nextItem(item)),
    ArrowUp: () => focusItem(previousItem(item)),
    ArrowRight: () => {
      if (row?.open) focusItem(firstBelow(item));
      else if (row) open(row);
    },
    ArrowLeft: () => {
      if (row?.open) close(row);
      else focusItem(itemAbove(item));
    },
    Home: () => focusItem(root.item),
    End: () => focusItem(lastWithin(root.item)),
    Enter: () => row ? choose(row.name) : loadMore(rows.get(item.dataset.more)),
    " ": () => row ? choose(row.name) : loadMore(rows.get(item.dataset.more)),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

tree.addEventListener("click", (event) => {
  const item = event.target.closest('[role="treeitem"]');
  if (!item) return;
  focusItem(item);
  const row = rows.get(item.dataset.node);
  if (!row) loadMore(rows.get(item.dataset.more));
  else if (!event.target.classList.contains("twist")) choose(row.name);
  else if (row.open) close(row);
  else open(row);
});

// The chosen node: what it is, and its history.

/** The root's name in this page is "/", however it was typed. */
const canonical = (name) => !name || name === status?.model ? "/" : name;

async function choose(name) {
  chosen = canonical(name);
  byId("try-node").value = chosen;
  for (const item of tree.querySelectorAll('[aria-selected="true"]')) item.ariaSelected = "false";
  if (rows.has(chosen)) rows.get(chosen).item.ariaSelected = "true";
  await showNode(chosen);
}

async function showNode(name) {
  const facts = byId("node-facts");
  const note = byId("node-note");
  if (name === "/") {
    setFacts(facts, [["Node", "/"], ["Base", status ? shown(status.model) : ""]]);
    setText(note, "");
    byId("history").hidden = true;
    return;
  }
  let node;
  try {
    node = await json(nodeRoute(name));
  } catch (error) {
    if (chosen !== name) return;
    setFacts(facts, []);
    setText(note, error.message, true);
    byId("history").hidden = true;
    return;
  }
  if (chosen !== name) return;
  known.set(name, node);
  setText(note, "");
  const labels = Object.entries(node.labels ?? {}).map(([word, value]) =>
    [shown(word), bdi(typeof value === "string" ? value : JSON.stringify(value))]);
  setFacts(facts, [
    ["Node", bdi(node.node)], ["Parent", bdi(node.parent)], ["Kind", inKind(node)],
    ["Matrices", node.matrices && count(node.matrices)],
    ["Bytes", node.bytes && inBytes(node.bytes)],
    ["Generation", node.generation != null && count(node.generation)],
    ["Trained on", node.trained_on != null && `generation ${count(node.trained_on)} of its parent`],
    ["Made", node.created && inDate(node.created)], ...labels,
  ]);
  await showHistory(node);
}

const inKind = (node) => [shown(node.kind ?? "").replaceAll("_", " "), inRanks(node.ranks)]
  .filter(Boolean).join(", ");

function setFacts(place, facts) {
  place.replaceChildren(...facts.filter(([, value]) => value).flatMap(([word, value]) =>
    [element("dt", {}, word), element("dd", { dir: "auto" }, value)]));
}

async function showHistory(node) {
  const place = byId("history");
  place.hidden = !status?.is_store;
  if (place.hidden) return;
  setText(byId("history-note"), "");
  try {
    const { versions } = await json(`${nodeRoute(node.node)}/history`);
    if (chosen !== node.node) return;
    const ended = versions.filter((one) => one.ending).reverse();
    byId("versions").replaceChildren(versionItem(node, null),
      ...ended.map((version) => versionItem(version, node)));
    setText(byId("history-note"), ended.length ? "" : "No earlier version is kept.");
  } catch (error) {
    byId("versions").replaceChildren();
    setText(byId("history-note"), error.message, true);
  }
}

/** A version in the list; `node` is the one it can be brought back over, null for the current. */
function versionItem(version, node) {
  const facts = [inKind(version), version.bytes ? inBytes(version.bytes) : ""].filter(Boolean);
  const item = element("li", {},
    element("b", {}, `Generation ${count(version.generation)}`), " ",
    node ? `${shown(version.ending)} at ${count(version.ended)}` : "current", element("br"),
    element("span", { class: "info" }, version.created ? inDate(version.created) : "",
      facts.length ? ` · ${facts.join(" · ")}` : ""));
  if (node && status.can_change) offerRollback(item, version, node);
  return item;
}

function offerRollback(item, version, node) {
  const place = element("div");
  const ask = element("button", { type: "button" }, "Roll back to this");
  const yes = element("button", { type: "button", class: "main" }, "Roll back");
  const no = element("button", { type: "button" }, "Leave it");
  const question = element("p", {}, `Put generation ${count(version.generation)} in the place of ` +
    `${count(node.generation)} of `, bdi(node.node), "? Whoever asks at it from then on gets it.");
  ask.addEventListener("click", () => {
    place.replaceChildren(question, yes, no);
    no.focus();
  });
  const leave = () => {
    place.replaceChildren(ask);
    ask.focus();
  };
  no.addEventListener("click", leave);
  place.addEventListener("keydown", (event) => event.key === "Escape" && leave());
  yes.addEventListener("click", async () => {
    yes.disabled = true;
    try {
      const body = { generation: version.generation, expected_generation: node.generation };
      await json(`${nodeRoute(node.node)}/rollback`, { method: "POST", body });
      await showNode(node.node);
      setText(byId("history-note"), `Rolled back to generation ${count(version.generation)}.`);
    } catch (error) {
      setText(byId("history-note"), error.message, true);
      leave();
    } finally {
      yes.disabled = false;
    }
  });
  place.append(ask);
  item.append(place);
}

// A node beside its parent: two streams, and where they part.

const sides = { parent: makeSide("answer-parent"), node: makeSide("answer-node") };
let running = null; // the AbortController of the streams

function makeSide(id) {
  const place = byId(id);
  const [same, first, rest] = [new Text(""), new Text(""), new Text("")];
  const mark = element("mark", {}, first);
  mark.hidden = true;
  const answer = place.querySelector(".answer");
  answer.append(same, mark, rest);
  return { place, answer, same, first, rest, mark, text: "", done: true,
    name: place.querySelector(".name"), figures: place.querySelector(".figures") };
}

/** The events of a stream: the `data` of each, as it comes. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (left + value).split("\n");
    left = lines.pop();
    for (const line of lines.map((one) => one.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

async function stream(side, model, question, signal) {
  const started = performance.now();
  let firstMs = null;
  let usage = null;
  let reason = "";
  let pieces = 0;
  const figures = (end) => {
    const seconds = (performance.now() - started) / 1000;
    const tokens = usage?.completion_tokens ?? pieces;
    const rest = seconds - (firstMs ?? 0) / 1000;
    return [`${plural(tokens, "token")} in ${seconds.toFixed(2)} s`,
      firstMs != null && `first after ${inMs(firstMs)} ms`,
      end && tokens > 1 && rest > 0 && `${((tokens - 1) / rest).toFixed(1)} tokens/s`, end]
      .filter(Boolean).join(" · ");
  };
  Object.assign(side, { text: "", done: false });
  setText(side.name, shown(model));
  side.figures.role = null; // Figures change with every token: too often to be read out.
  setText(side.figures, "waiting");
  try {
    const { route, body } = question(model);
    const answer = await call(route, { method: "POST", body, signal });
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(0, shown(chunk.error.message));
      if (chunk.usage) usage = chunk.usage;
      const choice = chunk.choices?.[0];
      const piece = choice?.text ?? choice?.delta?.content ?? "";
      if (choice?.finish_reason) reason = choice.finish_reason;
      if (!piece) continue;
      firstMs ??= performance.now() - started;
      pieces += 1;
      side.text += piece;
      setText(side.figures, figures(""));
      showAnswersSoon();
    }
    setText(side.figures, figures(`ended: ${shown(reason || "without a reason")}`));
  } catch (error) {
    if (signal.aborted) {
      setText(side.figures, figures("stopped"));
    } else {
      side.figures.role = "alert";
      setText(side.figures, error instanceof ApiError ? error.message
        : `The answer broke off: ${error.message}`, true);
    }
  }
  side.done = true;
  showAnswersSoon();
}

/** Where two texts begin to differ, at the beginning of that word; null while they do not. */
function parting(one, other, ended) {
  const shorter = Math.min(one.length, other.length);
  let at = 0;
  while (at < shorter && one[at] === other[at]) at += 1;
  if (at === shorter && (one.length === other.length || !ended)) return null;
  // Back to the word's beginning, but not far: some scripts have no spaces. Never into a character.
  const space = Math.max(one.lastIndexOf(" ", at - 1), one.lastIndexOf("\n", at - 1));
  if (at > 0 && at - space <= 24) return space + 1;
  while (at > 0 && /^[\p{M}\u200d\udc00-\udfff]/u.test(one.slice(at) || other.slice(at))) at -= 1;
  return at;
}

let drawn = 0;

function showAnswersSoon() {
  if (!drawn) drawn = requestAnimationFrame(showAnswers);
}

function showAnswers() {
  drawn = 0;
  const { parent, node } = sides;
  const shorter = parent.text.length < node.text.length ? parent : node;
  const at = parent.place.hidden ? null : parting(parent.text, node.text, shorter.done);
  for (const side of [parent, node]) {
    const low = side.answer.scrollTop + side.answer.clientHeight > side.answer.scrollHeight - 24;
    const cut = at ?? side.text.length;
    const word = side.text.slice(cut).match(/^\s*\S*/)[0].length;
    const parts = [side.text.slice(0, cut), side.text.slice(cut, cut + word),
      side.text.slice(cut + word)];
    [side.same, side.first, side.rest].forEach((text, index) => {
      // Text that only grows is appended to, so that a selection in it stays.
      if (parts[index] === text.data) return;
      if (parts[index].startsWith(text.data)) text.appendData(parts[index].slice(text.length));
      else text.data = parts[index];
    });
    side.mark.hidden = !word;
    if (low) side.answer.scrollTop = side.answer.scrollHeight;
  }
  if (!parent.done || !node.done || parent.place.hidden || !parent.text || !node.text) return;
  setText(byId("try-note"), at === null ? "Both answers are the same."
    : "Where the answers begin to differ is marked.");
}

/** The request for either side, from the form. */
function readQuestion() {
  const prompt = byId("try-prompt").value;
  const common = {
    max_tokens: Number(byId("try-tokens").value),
    temperature: Number(byId("try-temperature").value),
    stream: true, stream_options: { include_usage: true },
  };
  const chat = byId("try-form").elements.kind.value === "chat";
  return (model) => chat
    ? { route: "v1/chat/completions",
      body: { model, messages: [{ role: "user", content: prompt }], ...common } }
    : { route: "v1/completions", body: { model, prompt, ...common } };
}

async function runBoth() {
  running?.abort();
  const controller = new AbortController();
  running = controller;
  byId("try-stop").disabled = false;
  setText(byId("try-note"), "");
  const name = canonical(byId("try-node").value.trim());
  const question = readQuestion();
  try {
    let parent = null;
    if (name !== "/") {
      const node = await json(nodeRoute(name), { signal: controller.signal });
      known.set(name, node);
      parent = node.parent ?? "/";
    }
    sides.parent.place.hidden = parent === null;
    const streams = [stream(sides.node, name, question, controller.signal)];
    if (parent !== null) streams.push(stream(sides.parent, parent, question, controller.signal));
    else setText(byId("try-note"), "The root has no parent: the base answers alone.");
    showAnswersSoon();
    await Promise.all(streams);
  } catch (error) {
    if (!controller.signal.aborted) setText(byId("try-note"), error.message, true);
  }
  if (running !== controller) return;
  running = null;
  // A button that is switched off loses the focus to nowhere.
  if (document.activeElement === byId("try-stop")) byId("try-run").focus();
  byId("try-stop").disabled = true;
}

byId("try-form").addEventListener("submit", (event) => {
  event.preventDefault();
  runBoth();
});
byId("try-stop").addEventListener("click", () => running?.abort());
byId("try-prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    byId("try-form").requestSubmit();
  }
});
byId("try-node").addEventListener("change", () => choose(byId("try-node").value.trim()));

// Throughput and latency over time.

const samples = []; // {at: s on the server's clock, rate, p50, p99}

function addSample(before) {
  const at = status.uptime_s;
  const seconds = before ? at - before.uptime_s : 0;
  // After a pause (the tab was hidden) a rate over the pause would be drawn as one moment.
  const rate = seconds > 0 && seconds < 5
    ? (status.generated_tokens - before.generated_tokens) / seconds : null;
  const first = status.latency?.first_token_ms;
  samples.push({ at, rate, p50: first?.p50 ?? null, p99: first?.p99 ?? null });
  while (samples[0].at < at - WINDOW_S - 5) samples.shift();
}

function showCharts() {
  const now = samples.at(-1);
  const figure = (value, round) => value == null ? "–" : round(value);
  setText(byId("rate"), figure(now.rate, (rate) => rate.toFixed(rate < 100 ? 1 : 0)));
  setText(byId("first-p50"), figure(now.p50, inMs));
  setText(byId("first-p99"), figure(now.p99, inMs));
  drawCharts();
}

function drawCharts() {
  drawChart(byId("rate-chart"), ["rate"]);
  drawChart(byId("first-chart"), ["p50", "p99"]);
}

new ResizeObserver(drawCharts).observe(byId("load"));

/** The least of 1, 2, 5 times a power of ten that is not below the value. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.9999);
}

function drawChart(svg, columns) {
  const { width, height } = svg.getBoundingClientRect();
  if (!width || !samples.length) return;
  const [top, bottom] = [14.5, Math.round(height) - 16.5];
  const highest = Math.max(...samples.flatMap((one) => columns.map((name) => one[name] ?? 0)));
  const scale = highest > 0 ? roundUp(highest) : 1;
  const now = samples.at(-1).at;
  const parts = [top, bottom].map((y) => element("line", { class: "grid", x1: 0, x2: width,
    y1: y, y2: y }));
  const label = (x, y, text, look) => element("text", { x, y, class: look }, text);
  parts.push(label(0, top - 4, count(scale), ""), label(0, bottom + 13, "2 min ago", ""),
    label(width, bottom + 13, "now", "end"));
  columns.forEach((name, index) => {
    let line = [];
    let last = null;
    const finish = () => {
      // One point is no line; it is drawn as a short one.
      if (line.length === 1) line.push([line[0][0] + 1.5, line[0][1]]);
      if (line.length) parts.push(element("polyline", { points: line.map((point) =>
        point.map((part) => part.toFixed(1)).join()).join(" "), class: index ? "second" : "" }));
      line = [];
    };
    for (const { at, [name]: value } of samples) {
      if (value === null || last !== null && at - last > 5) finish();
      last = at;
      if (value === null || at < now - WINDOW_S) continue;
      line.push([width * (1 - (now - at) / WINDOW_S), bottom - (bottom - top) * value / scale]);
    }
    finish();
  });
  svg.replaceChildren(...parts);
}

// Memory, and what was counted.

const meters = new Map(); // title -> its parts

function showMeters() {
  const { cache, device_cache: device, pages } = status;
  if (cache) {
    meter("Deltas in host memory", cache.bytes, cache.budget,
      `${inBytes(cache.bytes)} of ${inBytes(cache.budget)}, ${plural(cache.nodes, "node")}`);
  }
  if (device) {
    meter("Deltas in GPU memory", device.bytes, device.budget,
      `${inBytes(device.bytes)} of ${inBytes(device.budget)}, ${plural(device.nodes, "node")}`);
  }
  if (pages?.total) {
    const used = pages.total - pages.free;
    meter("KV pages", used, pages.total, `${count(used)} of ${count(pages.total)}`);
  }
}

function meter(title, value, all, text) {
  let parts = meters.get(title);
  if (!parts) {
    const [words, fill] = [element("span"), element("div")];
    const bar = element("div", { class: "bar", role: "meter", "aria-label": title,
      "aria-valuemin": 0 }, fill);
    byId("meters").append(element("div", { class: "meter" }, element("span", {}, title), words,
      bar));
    parts = { words, bar, fill };
    meters.set(title, parts);
  }
  setText(parts.words, text);
  parts.bar.setAttribute("aria-valuemax", all);
  parts.bar.setAttribute("aria-valuenow", value);
  parts.bar.setAttribute("aria-valuetext", text);
  parts.fill.style.width = `${all ? Math.min(100, 100 * value / all) : 0}%`;
}

function showCounts() {
  const { requests, cache, rows: kinds } = status;
  const some = (pairs) => pairs.filter(([number]) => number)
    .map(([number, word]) => `${count(number)} ${word}`).join(", ");
  const read = cache.hits + cache.misses;
  const all = kinds.merged + kinds.factored;
  const facts = [
    ["Requests", [`${count(requests.completed)} completed`, some([
      [status.running, "running"], [status.waiting, "waiting"], [requests.cancelled, "cancelled"],
      [requests.failed, "failed"], [requests.refused, "refused"],
      [status.preempted, "preempted"]])].filter(Boolean).join(", ")],
    ["Tokens", `${count(status.generated_tokens)} generated, ${count(status.prompt_tokens)} read`],
    ["Rows", all && `${Math.round(100 * kinds.merged / all)} % with merged weights alone, ` +
      "the others with deltas beside them"],
    ["Deltas found", read && `${Math.round(100 * cache.hits / read)} % in memory, ` +
      `${plural(cache.evictions, "eviction")}`],
  ];
  const now = JSON.stringify(facts);
  if (byId("counts").dataset.shown === now) return;
  byId("counts").dataset.shown = now;
  setFacts(byId("counts"), facts);
}

poll();
