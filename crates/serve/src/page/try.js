// A node beside its parent: two streams, and where they part.

import { ApiError, call, json, nodeRoute } from "./call.js";
import { byId, element, inMs, plural, setText, shown } from "./dom.js";
import { canonical, known } from "./known.js";
import { choose } from "./node.js";

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
