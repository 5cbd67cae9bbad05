// A tile for each device: whether it takes work, and if not, why; what it holds, and for how long.

import * as act from "./act.js";
import { $, h, say, sync } from "./dom.js";
import { openJob } from "./job.js";
import { bytes, since } from "./words.js";

const cordoned = (device) => /cordon/i.test(device.reason);

export function show(state) {
  const tiles = $("tiles");
  const running = (device) => [...state.running.values()].filter((it) => it.devices.includes(device.id));
  const workers = (device) => state.residents.filter((it) => it.devices.includes(device.id) && it.jobs.length === 0);
  const stamp = (device) => JSON.stringify([device, running(device).map((it) => [it.id, it.attempt, it.progress]), workers(device)]);
  sync(tiles, state.devices, (it) => it.id, stamp, (device) => tile(device, running(device), workers(device)));
  tick();
}

/** What time alone changes. */
export function tick() {
  for (const element of document.querySelectorAll("[data-since]")) say(element, since(element.dataset.since));
}

function tile(device, running, workers) {
  const facts = [
    memory(device),
    device.utilization != null && [
      "Use",
      h("meter", { min: 0, max: 100, value: device.utilization, "aria-label": "Utilisation" }),
      `${device.utilization} %`,
    ],
    device.temperature != null && ["Heat", "", `${device.temperature} °C`],
    device.power_w != null && ["Power", "", `${Math.round(device.power_w)} W`],
  ].filter(Boolean);
  const title = device.index == null ? device.name : `${device.index} · ${device.name}`;
  return h(
    "article",
    { class: `tile ${device.verdict}`, "aria-label": title },
    h("h3", {}, title, h("span", { class: `badge ${device.verdict}` }, device.verdict)),
    device.reason && device.reason !== slots(device) && h("p", { class: "reason" }, device.reason),
    facts.length > 0 && h("dl", {}, facts.flatMap(([name, bar, value]) => [h("dt", {}, name), h("dd", {}, bar), h("dd", {}, value)])),
    running.length > 0 && h("ul", {}, running.slice(0, 16).map(lease)),
    running.length > 16 && h("p", { class: "quiet" }, `and ${running.length - 16} more`),
    workers.length > 0 &&
      h("ul", {}, workers.map((it) => h("li", {}, `worker of ${it.route}`, h("span", { class: "badge leased" }, it.state)))),
    h(
      "div",
      { class: "foot" },
      h("span", {}, slots(device)),
      cordoned(device)
        ? h("button", { class: "small", "data-act": "cordon", onclick: () => act.uncordon(device.id) }, "Uncordon")
        : h("button", { class: "small", "data-act": "cordon", onclick: () => act.cordon(device.id, title) }, "Cordon"),
    ),
  );
}

const slots = (device) => `${device.taken} of ${device.slots} ${device.slots === 1 ? "slot" : "slots"} taken`;

function memory(device) {
  if (device.memory_used == null) return null;
  const total = device.memory_total;
  const bar = total && h("meter", { min: 0, max: total, value: device.memory_used, "aria-label": "Memory" });
  return ["Memory", bar || "", total ? `${bytes(device.memory_used)} of ${bytes(total)}` : bytes(device.memory_used)];
}

function lease(run) {
  const { fraction, message } = run.progress || {};
  return h(
    "li",
    {},
    h("button", { class: "name", "data-act": run.id, onclick: () => openJob(run.id) }, run.name),
    h("span", { "data-since": run.started_at || "" }, since(run.started_at)),
    fraction != null && h("progress", { max: 1, value: fraction, "aria-label": `Progress of ${run.name}` }),
    message && h("span", { class: "quiet said" }, message),
  );
}
