// What hasn't ended: what runs, and why the rest waits.

import * as act from "./act.js";
import { $, h, say, sync } from "./dom.js";
import { openJob } from "./job.js";
import { clock, count, since } from "./words.js";

/** Rows that are shown; of more only the number. */
const SHOWN = 100;
const ORDER = ["running", "retrying", "claimed", "ready", "arriving", "held"];

export const key = (row) => row.id || `${row.folder || ""}/${row.name}`;

export function show(state) {
  const wanted = $("queue-state").value;
  const part = $("queue-name").value.toLowerCase();
  const all = [...state.live.values()].filter(
    (row) => row.state !== "ignored" && (!wanted || row.state === wanted) && row.name.toLowerCase().includes(part),
  );
  const rank = (row) => ORDER.indexOf(row.state);
  all.sort((a, b) => rank(a) - rank(b) || (a.arrived_at || "").localeCompare(b.arrived_at || ""));
  const rows = all.slice(0, SHOWN);
  const body = $("queue").tBodies[0];
  if (rows.length === 0) {
    const words = wanted || part ? "Nothing here is like that." : "Nothing waits and nothing runs.";
    sync(body, [words], () => "empty", (it) => it, (it) => h("tr", {}, h("td", { colspan: 5, class: "empty" }, it)));
  } else {
    const began = (row) => state.running.get(row.id)?.started_at || row.arrived_at;
    sync(body, rows, key, (row) => JSON.stringify([row, began(row)]), (row) => line(row, began(row), state.devices));
  }
  const counted = ORDER.reduce((sum, word) => sum + (state.counts[word] || 0), 0);
  const more = (wanted || part ? all.length : Math.max(counted, all.length)) - rows.length;
  say($("queue-more"), more > 0 ? `and ${count(more, "more", "more")}; ask for a state or a part of a name` : "");
}

/** Devices as people call them. */
function on(ids, devices) {
  const name = (id) => {
    const index = devices.find((device) => device.id === id)?.index;
    return index == null ? id : `GPU ${index}`;
  };
  return `runs on ${ids.map(name).join(", ")}`;
}

function line(row, began, devices) {
  const can = row.state !== "arriving" || row.id;
  return h(
    "tr",
    {},
    h(
      "td",
      {},
      h("button", { class: "name", "data-act": "open", onclick: () => openJob(act.named(row)) }, row.name),
      h("span", { class: "route" }, [row.folder && `${row.folder}/`, row.route].filter(Boolean).join(" · ")),
    ),
    h("td", {}, h("span", { class: `badge ${row.state}` }, row.state), row.attempts > 1 && ` attempt ${row.attempts}`),
    h("td", {}, row.reason || (row.state === "running" && row.devices.length > 0 ? on(row.devices, devices) : ""), range(row)),
    h("td", { title: clock(began) }, h("span", { "data-since": began || "" }, since(began))),
    h("td", {}, can && h("button", { class: "small danger", "data-act": "cancel", onclick: () => act.cancel(row) }, "Cancel")),
  );
}

/** When it may begin and end, as far as the route's own history tells. */
function range(row) {
  const of = (span) => `${clock(span.from)} – ${clock(span.to)}`;
  const { start, end } = row.estimate || {};
  if (!start && !end) return null;
  const words = [start && `begins ${of(start)}`, end && `ends ${of(end)}`];
  return h("span", { class: "route" }, words.filter(Boolean).join(" · "));
}
