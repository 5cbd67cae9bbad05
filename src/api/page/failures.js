// What failed, why, and what its log said last.

import * as act from "./act.js";
import { get, follow } from "./api.js";
import { $, h, say, sync } from "./dom.js";
import { openJob } from "./job.js";
import { clock, count } from "./words.js";

const SHOWN = 20;
const TAIL = 600;
const LINES = 3;
/** By id and time: the last lines of a log don't change any more. */
const tails = new Map();

export function show(state) {
  const rows = state.failed.slice(0, SHOWN);
  const body = $("failed").tBodies[0];
  const failed = state.counts.failed || 0;
  if (rows.length === 0) {
    sync(body, ["Nothing has failed."], () => "empty", (it) => it, (it) => h("tr", {}, h("td", { colspan: 5, class: "empty" }, it)));
  } else {
    sync(body, rows, (row) => row.id, (row) => JSON.stringify(row), line);
  }
  say($("failed-more"), failed > rows.length ? `${count(failed, "item")} in failed/; the last ${rows.length} are shown` : "");
  sync($("retry-all"), failed > 0 ? [failed] : [], () => "all", (n) => n, (n) =>
    h("button", { "data-act": "all", onclick: () => act.retryAll(n) }, "Try all again"),
  );
}

function line(row) {
  const said = h("pre", {}, tails.get(row.id + row.finished_at) ?? "");
  if (!tails.has(row.id + row.finished_at)) {
    tail(row).then((text) => {
      if (tails.size > 500) tails.clear();
      tails.set(row.id + row.finished_at, text);
      say(said, text);
    });
  }
  return h(
    "tr",
    {},
    h(
      "td",
      {},
      h("button", { class: "name", "data-act": "open", onclick: () => openJob(row.id) }, row.name),
      row.route && h("span", { class: "route" }, row.route),
    ),
    h("td", {}, h("span", { class: "badge failed" }, row.reason || "failed"), row.attempts > 1 && ` after ${row.attempts} attempts`),
    h("td", {}, said),
    h("td", {}, clock(row.finished_at)),
    h("td", {}, h("button", { class: "small", "data-act": "retry", onclick: () => act.retry(row) }, "Try again")),
  );
}

async function tail(row) {
  let text = "";
  try {
    await follow(`/v1/items/${encodeURIComponent(row.id)}/logs?tail=${TAIL}`, (part) => (text += part));
  } catch {
    // It never ran, or is being tried again.
    return "";
  }
  return text.trimEnd().split("\n").slice(-LINES).join("\n");
}

/** The newest of them. */
export const read = () => get(`/v1/items?state=failed&limit=${SHOWN}`).then((page) => page.items);
