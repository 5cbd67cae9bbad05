// One item: where it stands, its attempts, its result, its log as it grows.

import * as act from "./act.js";
import { follow, get } from "./api.js";
import { $, goBack, h, place } from "./dom.js";
import { bytes, clock, span } from "./words.js";

/** So much of a log is kept on the page. */
const KEPT = 256 * 1024;
const ENDED = ["done", "failed", "cancelled"];
let shown = null; // the item's name to the director
let state = ""; // where it stood when it was read
let was = null; // where the focus was before
let cut = null; // ends the following of its log

export function openJob(name) {
  shown = name;
  const dialog = $("job");
  if (!dialog.open) was = place();
  dialog.replaceChildren(h("h2", { id: "job-name" }, "…"));
  if (!dialog.open) dialog.showModal();
  return refresh();
}

/** Reads again what is shown, when it is about this item. */
export function changed(row) {
  if ($("job").open && row.id && (row.id === shown || $("job").dataset.id === row.id) && row.state !== state) refresh();
}

async function refresh() {
  const name = shown;
  const dialog = $("job");
  cut?.abort();
  let it;
  try {
    it = await get(`/v1/items/${encodeURIComponent(name)}`);
  } catch (error) {
    if (name === shown) {
      dialog.replaceChildren(h("h2", { id: "job-name" }, "It isn't there"), h("p", {}, error.message), close());
    }
    return;
  }
  if (name !== shown) return;
  state = it.state;
  dialog.dataset.id = it.id || "";
  const result = it.result || {};
  const facts = [
    ["State", h("span", { class: `badge ${it.state}` }, it.state)],
    ["Reason", result.message || it.reason],
    ["Route", it.route],
    ["Devices", it.devices.join(", ")],
    ["Arrived", clock(it.arrived_at)],
    ["Ended", clock(it.finished_at)],
    ["Directory", it.paths.dir && h("code", {}, it.paths.dir)],
    ["Outputs", (result.outputs || []).map((out) => `${out.path} (${bytes(out.bytes)})`).join(", ")],
    ["Result", result.result != null && h("code", {}, JSON.stringify(result.result))],
  ];
  const log = h("pre", { class: "log", tabindex: 0, "aria-label": "Log" });
  const can = ENDED.includes(it.state)
    ? it.state !== "done" && h("button", { onclick: () => act.retry(it) }, "Try again")
    : h("button", { class: "danger", onclick: () => act.cancel(it) }, "Cancel it");
  dialog.replaceChildren(
    h("h2", { id: "job-name" }, it.name),
    h("dl", {}, facts.filter(([, value]) => value).flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, value)])),
    it.history.length > 0 ? attempts(it.history) : "",
    log,
    h("div", { class: "actions" }, can || "", h("button", { autofocus: true, onclick: () => dialog.close() }, "Close")),
  );
  if (it.paths.logs.length > 0) tail(name, it, log);
  else log.textContent = "It has written nothing yet.";
}

function close() {
  return h("div", { class: "actions" }, h("button", { autofocus: true, onclick: () => $("job").close() }, "Close"));
}

function attempts(history) {
  const took = (it) => it.started_at && it.ended_at && span((Date.parse(it.ended_at) - Date.parse(it.started_at)) / 1000);
  const ended = (it) => it.reason || (it.exit_code != null ? `exit ${it.exit_code}` : it.ended_at ? "ended" : "runs");
  const cells = (it) => [it.n, it.devices.join(", "), clock(it.started_at), took(it) || "", ended(it), it.counted === false ? "not counted" : ""];
  const head = ["Attempt", "On", "Began", "Took", "How it ended", ""];
  return h(
    "table",
    {},
    h("thead", {}, h("tr", {}, head.map((word) => h("th", { scope: "col" }, word)))),
    h("tbody", {}, history.map((it) => h("tr", {}, cells(it).map((cell) => h("td", {}, String(cell)))))),
  );
}

async function tail(name, it, log) {
  cut = new AbortController();
  const mine = cut;
  const follows = ENDED.includes(it.state) ? "" : "&follow=true";
  const more = (text) => {
    const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const whole = log.textContent + text;
    log.textContent = whole.length > KEPT ? `…\n${whole.slice(-KEPT)}` : whole;
    if (below) log.scrollTop = log.scrollHeight;
  };
  try {
    await follow(`/v1/items/${encodeURIComponent(name)}/logs?tail=${KEPT}${follows}`, more, mine.signal);
    if (!log.textContent) log.textContent = "It wrote nothing.";
  } catch (error) {
    if (!mine.signal.aborted) more(`\n(${error.message})`);
  }
}

$("job").addEventListener("close", () => {
  shown = null;
  cut?.abort();
  goBack(was);
});
