// Throughput and latency over time, memory, and what was counted.

import { byId, count, element, inBytes, inMs, plural, setFacts, setText } from "./dom.js";
import { status } from "./known.js";

const WINDOW_S = 120; // what the charts show
const RATE_S = 5.5; // what a rate is taken over
const LONGEST_GAP_S = 5; // between two samples that a line joins

/** Shows the status; `before` is the one that was shown, null for none of this server. */
export function showLoad(before) {
  if (!before) samples.length = 0;
  addSample(before);
  showCharts();
  showMeters();
  showCounts();
}

const samples = []; // {at: s on the server's clock, tokens, rate, p50, p99}

function addSample(before) {
  const at = status.uptime_s;
  const tokens = status.generated_tokens;
  // A text's tokens may be counted when it ends, so the rate is that of a few seconds. After a pause
  // (the tab was hidden) a rate over the pause would be drawn as one moment.
  const isNext = before && at - before.uptime_s < LONGEST_GAP_S;
  const since = isNext ? samples.find((one) => one.at > at - RATE_S) ?? samples.at(-1) : null;
  const rate = since && at > since.at ? (tokens - since.tokens) / (at - since.at) : null;
  const first = status.latency?.first_token_ms;
  samples.push({ at, tokens, rate, p50: first?.p50 ?? null, p99: first?.p99 ?? null });
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
      if (value === null || last !== null && at - last > LONGEST_GAP_S) finish();
      last = at;
      if (value === null || at < now - WINDOW_S) continue;
      line.push([width * (1 - (now - at) / WINDOW_S), bottom - (bottom - top) * value / scale]);
    }
    finish();
  });
  svg.replaceChildren(...parts);
}

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
