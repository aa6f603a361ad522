// The chosen node: what it is, and its history.

import { json, nodeRoute } from "./call.js";
import { bdi, byId, count, element, inBytes, inDate, inRanks, setFacts, setText, shown }
  from "./dom.js";
import { canonical, known, status } from "./known.js";
import { select, tree } from "./tree.js";

export let chosen = "";

tree.addEventListener("choose", (event) => choose(event.detail));

export async function choose(name) {
  chosen = canonical(name);
  byId("try-node").value = chosen;
  select(chosen);
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
