// What a person can do. Whatever hurts is asked first; a refusal is told in the director's own words.

import { post } from "./api.js";
import { confirm, tell } from "./ask.js";

async function attempt(done, path, body) {
  try {
    await post(path, body);
    tell(done);
    return true;
  } catch (error) {
    tell([error.message, error.help].filter(Boolean).join(" — "), "bad");
    return false;
  }
}

export const pause = () => attempt("Paused: nothing new is started.", "/v1/pause");
export const resume = () => attempt("Work goes on.", "/v1/resume");

export async function drain() {
  const means = "What runs is finished, nothing else is started, and then the director ends. Somebody has to start it again.";
  if (await confirm("End the director?", means, "Drain")) await attempt("Draining.", "/v1/drain");
}

export async function cordon(device, name) {
  const means = "It takes no more work until it is uncordoned; what runs on it goes on.";
  if (await confirm(`Cordon ${name}?`, means, "Cordon")) await attempt("Cordoned.", "/v1/cordon", { device });
}

export const uncordon = (device) => attempt("It takes work again.", "/v1/uncordon", { device });

/** How a row is named to the director. */
export const named = (row) => row.id || `${row.folder || "."}/${row.name}`;

export async function cancel(row) {
  const runs = row.state === "running";
  const means = runs ? "It is stopped, and ends as cancelled; it isn't tried again." : "It won't run; it is filed as cancelled.";
  if (await confirm(`Cancel ${row.name}?`, means, "Cancel it")) {
    await attempt("Cancelled.", "/v1/cancel", { jobs: [named(row)] });
  }
}

export const retry = (row) => attempt(`${row.name} is tried again.`, "/v1/retry", { jobs: [named(row)] });

export async function retryAll(count) {
  const means = `All ${count.toLocaleString()} items in failed/ run again, under their ids.`;
  if (await confirm("Try all failed items again?", means, "Try again")) {
    await attempt("They are tried again.", "/v1/retry", { failed: true });
  }
}
