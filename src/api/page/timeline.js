// What ran when, a lane for each device. What is between is a gap.

import { get } from "./api.js";
import { $, h, sync } from "./dom.js";
import { openJob } from "./job.js";
import { clock, now, span } from "./words.js";

const SPANS = [["15 min", 900], ["1 h", 3600], ["6 h", 21_600], ["24 h", 86_400]];
/** Attempts that are drawn; the oldest are left out. */
const MOST = 2000;
let seconds = 3600;
let attempts = [];
let left = false;
let redraw = () => {};

export function start(again) {
  redraw = again;
  $("timeline-span").replaceChildren(
    ...SPANS.map(([word, length]) =>
      h("button", { class: "small", "aria-pressed": String(length === seconds), onclick: (event) => choose(event, length) }, word),
    ),
  );
}

async function choose(event, length) {
  for (const button of $("timeline-span").children) button.setAttribute("aria-pressed", String(button === event.target));
  seconds = length;
  await read();
  redraw();
}

/** Those that ended within the span. */
export async function read() {
  const from = new Date(now() - seconds * 1000).toISOString();
  const page = await get(`/v1/attempts?since=${encodeURIComponent(from)}&limit=${MOST}`);
  attempts = page.attempts;
  left = page.more;
}

export function show(state) {
  const to = now();
  const from = to - seconds * 1000;
  const lanes = new Map(state.devices.map((device) => [device.id, { device, runs: [] }]));
  const runs = [...attempts, ...[...state.running.values()].map((it) => ({ ...it, n: it.attempt, ended_at: null, outcome: "running" }))];
  for (const run of runs) {
    for (const id of run.devices) {
      if (!lanes.has(id)) lanes.set(id, { device: { id, name: id, index: null }, runs: [] });
      if (run.started_at) lanes.get(id).runs.push(run);
    }
  }
  const axis = [0, 0.25, 0.5, 0.75, 1].map((part) => h("span", {}, clock(from + part * (to - from)).replace(/:\d\d(?=$| [AP]M)/, "")));
  $("timeline").replaceChildren(
    ...[...lanes.values()].map(({ device, runs }) => lane(device, runs, from, to)),
    h("div", { class: "axis", "aria-hidden": "true" }, axis),
    left ? h("p", { class: "quiet" }, `Only the last ${MOST} attempts are drawn.`) : "",
  );
}

function lane(device, runs, from, to) {
  const who = device.index == null ? device.name : `${device.index} · ${device.name}`;
  const strip = h("div", { class: "strip", role: "group", "aria-label": `${who}: ${runs.length} attempts` });
  const drawn = runs.filter((run) => !run.ended_at || Date.parse(run.ended_at) > from);
  strip.append(...drawn.map((run) => bar(run, from, to)));
  return h("div", { class: "lane" }, h("span", { class: "who", title: device.id }, who), strip);
}

function bar(run, from, to) {
  const [began, ended] = [Date.parse(run.started_at), run.ended_at ? Date.parse(run.ended_at) : to];
  const [left, right] = [Math.max(began, from), Math.min(ended, to)];
  const kind = run.outcome === "running" ? "running" : run.reason ? "failed" : "done";
  const words = `${run.name}, attempt ${run.n}: ${clock(run.started_at)}, ${span((ended - began) / 1000)}, ${run.reason || (kind === "running" ? "runs" : "done")}`;
  const element = h("button", { class: kind, title: words, "aria-label": words, tabindex: -1, onclick: () => openJob(run.id) });
  element.style.left = `${(100 * (left - from)) / (to - from)}%`;
  element.style.width = `${(100 * Math.max(0, right - left)) / (to - from)}%`;
  return element;
}
