// What is known of the server: its latest status, and nodes of the tree.
//
// A node's parent is usually the path above it, but `tree.toml` may say otherwise, so nodes that the
// status names are asked for before their way is taken for certain.

import { ApiError, json, nodeRoute } from "./call.js";

export let status = null;

export function setStatus(fresh) {
  status = fresh;
}

export const known = new Map(); // name -> Node, or null where the server does not show it
let learning = false;

export function parentOf(name) {
  if (name === "/") return null;
  const parent = known.get(name)?.parent;
  if (parent) return parent;
  const slash = name.lastIndexOf("/");
  return slash > 0 ? name.slice(0, slash) : "/";
}

/** The way from the root to a node. */
export function wayTo(name) {
  const way = [];
  for (let at = name; at !== null && way.length < 100; at = parentOf(at)) way.unshift(at);
  return way;
}

/** A node's name without its parent's. */
export function short(name) {
  const parent = parentOf(name);
  return parent && name.startsWith(`${parent}/`) ? name.slice(parent.length + 1) : name;
}

/** Asks for a few nodes that the status names and nothing is known of yet; says whether it did. */
export async function learn() {
  if (learning) return false;
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
  return asked > 0;
}

/** The root's name in this page is "/", however it was typed. */
export const canonical = (name) => !name || name === status?.model ? "/" : name;
