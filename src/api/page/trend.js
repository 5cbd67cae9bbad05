// How much was done, and how long it waited, over the last hour or day. The charts are uPlot's.

import { get } from "./api.js";
import { $, h } from "./dom.js";
import { now } from "./words.js";

const SPANS = [["1 h", 3600], ["24 h", 86_400]];
const BUCKETS = 60;
let seconds = 3600;
const charts = new Map();

export function start() {
  $("trend-span").replaceChildren(
    ...SPANS.map(([word, length]) =>
      h("button", { class: "small", "aria-pressed": String(length === seconds), onclick: (event) => choose(event, length) }, word),
    ),
  );
  new ResizeObserver(resize).observe($("ended"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const chart of charts.values()) chart.destroy();
    charts.clear();
    read();
  });
}

function choose(event, length) {
  for (const button of $("trend-span").children) button.setAttribute("aria-pressed", String(button === event.target));
  seconds = length;
  return read();
}

export async function read() {
  const from = new Date(now() - seconds * 1000).toISOString();
  const { buckets } = await get(`/v1/trend?since=${encodeURIComponent(from)}&buckets=${BUCKETS}`);
  const times = buckets.map((it) => Date.parse(it.at) / 1000);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  const bars = uPlot.paths.bars({ size: [0.8, 24] });
  draw("ended", [times, buckets.map((it) => it.done || null), buckets.map((it) => it.failed || null)], [
    { label: "done", stroke: colour("--free"), fill: colour("--free-ground"), paths: bars, points: { show: false } },
    { label: "failed", stroke: colour("--bad"), fill: colour("--bad-ground"), paths: bars, points: { show: false } },
  ]);
  draw("waited", [times, buckets.map((it) => it.waited_p50_s), buckets.map((it) => it.waited_p95_s)], [
    { label: "half of them", stroke: colour("--leased"), width: 2, points: { show: true, size: 6 } },
    { label: "95 %", stroke: colour("--busy"), width: 2, points: { show: true, size: 6 } },
  ]);
}

const size = (id) => ({ width: Math.max(200, $(id).clientWidth), height: 200 });

function resize() {
  for (const [id, chart] of charts) chart.setSize(size(id));
}

function draw(id, data, series) {
  if (charts.has(id)) return charts.get(id).setData(data);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  const options = {
    ...size(id),
    series: [{}, ...series],
    axes: [{ ...axis, space: 80 }, { ...axis, size: 48 }],
    scales: { y: { range: (_, low, high) => [0, Math.max(1, high || 0) * 1.05] } },
    cursor: { drag: { x: false, y: false } },
  };
  charts.set(id, new uPlot(options, data, $(id)));
}
