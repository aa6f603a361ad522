// The tree, level by level: nested lists in the ARIA tree pattern. One item is in the tab order at a
// time. A chosen node is told with an event `choose`.

import { json, nodeRoute } from "./call.js";
import { byId, count, element, inBytes, inRanks, setText, shown } from "./dom.js";
import { known, parentOf, short, status, wayTo } from "./known.js";

const PAGE = 100; // children of a node asked for at once
const REFRESH_MS = 5000; // open levels are read again at most this often

export const tree = byId("tree");
export const rows = new Map(); // name -> row
let root = null;
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
export function showTree() {
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

export function forgetTree() {
  rows.clear();
  painted.clear();
  tree.replaceChildren();
  root = null;
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
export function refreshSoon(before) {
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

/** Tells whoever listens that a node was chosen. */
const choose = (name) => tree.dispatchEvent(new CustomEvent("choose", { detail: name }));

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

/** Marks a node as the chosen one. */
export function select(name) {
  for (const item of tree.querySelectorAll('[aria-selected="true"]')) item.ariaSelected = "false";
  if (rows.has(name)) rows.get(name).item.ariaSelected = "true";
}
