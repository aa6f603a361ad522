// Calls to the server. Addresses are relative, so the page works below a proxy's prefix, too.

import { shown } from "./dom.js";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let key = ""; // kept for this tab alone, sent as a bearer token
let refused = () => {};
try {
  key = sessionStorage.getItem("pleach-key") ?? "";
} catch {
  // Storage may be forbidden; the key then lives as long as the page.
}

export const hasKey = () => key !== "";

export function setKey(value) {
  key = value;
  try {
    if (key) sessionStorage.setItem("pleach-key", key);
    else sessionStorage.removeItem("pleach-key");
  } catch {
    // As above.
  }
}

/** Sets what is done with the server's message where it wants a key, or another one. */
export function whenRefused(act) {
  refused = act;
}

/** Calls a route; an answer other than 2xx is thrown with the server's own message. */
export async function call(path, { method = "GET", body, signal } = {}) {
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
  if (answer.status === 401) refused(message);
  throw new ApiError(answer.status, `${answer.status}: ${message}`);
}

export const json = async (path, options) => (await call(path, options)).json();
export const nodeRoute = (name) => `v1/tree/nodes/${encodeURIComponent(name)}`;
