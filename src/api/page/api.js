// Requests to the director, and its stream of changes. A token, where one is needed, stays in this tab.

import { setClock } from "./words.js";

const KEY = "gamdok-token";
let token = sessionStorage.getItem(KEY) || "";
let ask = null; // one question for a token at a time

/** Set by the page: asks a person for the token. */
export let askForToken = async () => "";
export function onToken(question) {
  askForToken = question;
}

export class Refused extends Error {
  constructor(status, error) {
    super(error?.message || `the director answered ${status}`);
    Object.assign(this, { status, code: error?.code, help: error?.help });
  }
}

/** A request; asks for the token when it is refused for want of it. */
async function send(path, options = {}) {
  for (;;) {
    const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
    const used = token;
    const answer = await fetch(path, { ...options, headers, cache: "no-store" });
    setClock(answer.headers.get("date"));
    if (answer.status !== 401) return answer;
    if (token === used) {
      ask = ask || askForToken(Boolean(used)).finally(() => (ask = null));
      token = (await ask).trim();
      sessionStorage.setItem(KEY, token);
    }
  }
}

async function refused(answer) {
  let error = null;
  try {
    error = (await answer.json()).error;
  } catch {
    // Not one of ours: a proxy's, perhaps.
  }
  return new Refused(answer.status, error);
}

export async function get(path) {
  const answer = await send(path);
  if (!answer.ok) throw await refused(answer);
  return answer.json();
}

export async function post(path, body = {}) {
  const json = { "content-type": "application/json" };
  const answer = await send(path, { method: "POST", headers: json, body: JSON.stringify(body) });
  if (!answer.ok) throw await refused(answer);
  return answer.json();
}

/** The bytes of a log, as text, given to `more` as they come; ends with the log, or with `signal`. */
export async function follow(path, more, signal) {
  const answer = await send(path, { signal });
  if (!answer.ok) throw await refused(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    more(value);
  }
}

const FIRST = 500;
const LONGEST = 5000;
/** Without a word for so long (the director sends keep-alives) the connection is dead. */
const SILENCE = 45_000;

/**
 * Follows `/v1/events` for ever: by `fetch`, since an EventSource can't send a token. `on(event, data)` gets each event,
 * `link(words)` null when connected and else why not.
 */
export async function events(on, link) {
  let last = null;
  let wait = FIRST;
  for (;;) {
    const cut = new AbortController();
    let timer = null;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => cut.abort(), SILENCE);
    };
    try {
      alive();
      const headers = last ? { "last-event-id": last } : {};
      const answer = await send("/v1/events", { headers, signal: cut.signal });
      if (!answer.ok) throw await refused(answer);
      link(null);
      wait = FIRST;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        alive();
        text += value;
        const parts = text.split("\n\n");
        text = parts.pop();
        for (const part of parts) {
          const fields = {};
          for (const line of part.split("\n")) {
            const at = line.indexOf(": ");
            if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
          }
          if (fields.id) last = fields.id;
          if (fields.event) on(fields.event, JSON.parse(fields.data || "null"));
        }
      }
      link("The director has ended the connection; trying again …");
    } catch (error) {
      link(error instanceof Refused ? error.message : "The director can't be reached; trying again …");
    } finally {
      clearTimeout(timer);
    }
    await new Promise((resume) => setTimeout(resume, wait));
    wait = Math.min(wait * 2, LONGEST);
  }
}
