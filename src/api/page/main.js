// The page: a copy of the director's state, kept by its stream of changes, and shown when something has changed.

import * as act from "./act.js";
import { events, get, onToken } from "./api.js";
import { tell, token } from "./ask.js";
import * as devices from "./devices.js";
import { $, h, say, sync } from "./dom.js";
import * as failures from "./failures.js";
import * as job from "./job.js";
import * as queue from "./queue.js";
import * as timeline from "./timeline.js";
import * as trend from "./trend.js";
import { count, now, span } from "./words.js";

const LIVE = ["running", "claimed", "retrying", "ready", "arriving", "held"];
/** Rows of the queue that are asked for; the counts tell of the rest. */
const ROWS = 500;
/** What is counted and drawn from the history is read again so often, and soon after something ended. */
const HISTORY = 15_000;
const SOON = 2_000;

const state = {
  linked: true, director: "", version: "", root: "", started: 0,
  counts: {}, devices: [], running: new Map(), residents: [], health: new Map(), live: new Map(), failed: [],
};

onToken(token);

// What has to be drawn anew.
let stale = new Set();
let drawing = false;
function draw(...parts) {
  for (const part of parts) stale.add(part);
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const now = stale;
    stale = new Set();
    if (now.has("head")) head();
    if (now.has("devices")) devices.show(state);
    if (now.has("queue")) queue.show(state);
    if (now.has("failed")) failures.show(state);
    if (now.has("timeline")) timeline.show(state);
  });
}

function head() {
  const badge = $("state");
  badge.className = `badge ${state.linked ? state.director : "unknown"}`;
  say(badge, state.linked ? state.director || "…" : "not reachable");
  say($("root"), state.root);
  document.title = `${state.counts.failed ? `(${state.counts.failed} failed) ` : ""}gamdok · ${state.director}`;
  const { running = 0, retrying = 0, claimed = 0, ready = 0, arriving = 0, held = 0, done = 0, failed = 0, cancelled = 0 } = state.counts;
  const parts = [
    [running, "running"], [ready + claimed, "waiting"], [retrying, "retrying"], [arriving, "arriving"], [held, "held", "bad"],
    [done, "done"], [failed, "failed", "bad"], [cancelled, "cancelled"],
  ].filter(([n, word]) => n > 0 || ["running", "waiting", "done", "failed"].includes(word));
  const items = parts.map(([n, word, tone]) => [h("b", n > 0 && tone ? { class: tone } : {}, n.toLocaleString()), ` ${word}`]);
  const line = items.flatMap((item, at) => (at > 0 ? [" · ", ...item] : item));
  const text = parts.map(([n, word]) => `${n} ${word}`).join();
  if ($("summary").dataset.text !== text) {
    $("summary").dataset.text = text;
    $("summary").replaceChildren(...line);
  }
  $("summary").title = `gamdok ${state.version}, up ${span((now() - state.started) / 1000)}`;
  const paused = state.director === "paused";
  const buttons = state.director === "draining" ? [] : [paused ? "resume" : "pause", "drain"];
  const words = { pause: ["Pause", act.pause], resume: ["Resume", act.resume], drain: ["Drain", act.drain] };
  sync($("steer"), buttons, (it) => it, (it) => it, (it) =>
    h("button", { "data-act": it, class: it === "drain" ? "danger" : "", onclick: words[it][1] }, words[it][0]),
  );
  const wrong = [...state.health.values()].filter((it) => it.state !== "ok");
  const tone = (it) => (it.state === "failed" ? "bad" : "degraded");
  sync($("health"), wrong, (it) => it.what, (it) => JSON.stringify(it), (it) =>
    h("li", { class: tone(it) }, h("b", {}, it.what), ` ${it.message}`),
  );
}

/** Reads everything. */
async function readAll() {
  const [status, page, failed] = await Promise.all([
    get("/v1/status"), get(`/v1/items?state=${LIVE.join(",")}&limit=${ROWS}`), failures.read(),
  ]);
  Object.assign(state, {
    director: status.state, version: status.version, root: status.root, started: now() - (status.uptime_s || 0) * 1000,
    counts: status.counts, devices: status.devices, residents: status.residents, failed,
    running: new Map(status.running.map((it) => [it.id, it])),
    health: new Map(status.health.map((it) => [it.what, it])),
    live: new Map(page.items.map((row) => [queue.key(row), row])),
  });
  draw("head", "devices", "queue", "failed", "timeline");
  readHistory(0);
}

/** The rows of the queue, when too many changed to be told one by one. */
async function readRows() {
  const [page, failed] = await Promise.all([get(`/v1/items?state=${LIVE.join(",")}&limit=${ROWS}`), failures.read()]);
  state.live = new Map(page.items.map((row) => [queue.key(row), row]));
  state.failed = failed;
  const status = await get("/v1/status");
  state.running = new Map(status.running.map((it) => [it.id, it]));
  draw("devices", "queue", "failed");
}

/** Calls `work` once, `wait` from now, whatever else asks for it meanwhile; an error is the next time's. */
function later(work) {
  let timer = null;
  return (wait) => {
    timer ??= setTimeout(() => {
      timer = null;
      work().catch(() => {});
    }, wait);
  };
}
const soonRows = later(readRows);
const readHistory = later(async () => {
  await Promise.all([timeline.read(), trend.read()]);
  draw("timeline");
});
const again = later(() => readAll().catch((error) => (tell(error.message, "bad"), again(2000))));

function item(row) {
  const key = queue.key(row);
  job.changed(row);
  if (LIVE.includes(row.state)) {
    state.live.set(key, row);
    if (row.state !== "running") state.running.delete(row.id);
    const were = state.failed.length;
    state.failed = state.failed.filter((it) => it.id !== row.id);
    if (state.failed.length !== were) draw("failed");
  } else {
    state.live.delete(key);
    state.running.delete(row.id);
    if (row.state === "failed") {
      state.failed = [row, ...state.failed.filter((it) => it.id !== row.id)].slice(0, 50);
      draw("failed");
    }
    if (row.finished_at) readHistory(SOON);
  }
  // What isn't shown isn't kept: the counts tell of it.
  if (state.live.size > 4 * ROWS) soonRows(1000);
  draw("queue", "devices");
}

const on = {
  reset: () => again(0),
  director: (data) => ((state.director = data.state), draw("head")),
  counts: (data) => ((state.counts = data), draw("head", "queue", "failed")),
  device: (data) => {
    const at = state.devices.findIndex((it) => it.id === data.id);
    if (at < 0) state.devices.push(data);
    else state.devices[at] = data;
    draw("devices");
  },
  "device-gone": (data) => ((state.devices = state.devices.filter((it) => it.id !== data.id)), draw("devices")),
  item,
  gone: (data) => (state.live.delete(queue.key(data)), draw("queue")),
  items: () => soonRows(500),
  running: (data) => (state.running.set(data.id, data), draw("devices")),
  residents: (data) => ((state.residents = data), draw("devices")),
  health: (data) => (state.health.set(data.what, data), draw("head")),
};

timeline.start(() => draw("timeline"));
trend.start();
$("queue-state").addEventListener("change", () => draw("queue"));
$("queue-name").addEventListener("input", () => draw("queue"));
setInterval(devices.tick, 1000);
setInterval(() => draw("timeline"), 5000);
setInterval(() => readHistory(0), HISTORY);
events((event, data) => on[event]?.(data), (wrong) => {
  const link = $("link");
  state.linked = !wrong;
  draw("head");
  link.hidden = !wrong;
  say(link, wrong || "");
});
