// Numbers and times as people read them.

export function bytes(n) {
  if (n == null) return null;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (n >= 1024 && at < units.length - 1) (n /= 1024), at++;
  return `${at === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[at]}`;
}

export function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** Since a time, by this machine's clock corrected by what the server's answers say. */
let skew = 0;
export function setClock(header) {
  const theirs = Date.parse(header || "");
  if (theirs) skew = theirs - Date.now();
}
export const now = () => Date.now() + skew;
export const since = (time) => (time ? span((now() - Date.parse(time)) / 1000) : "");

export function clock(time) {
  if (!time) return "";
  const date = new Date(time);
  const today = new Date(now()).toDateString() === date.toDateString();
  const hours = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return today ? hours : `${date.toLocaleDateString()} ${hours}`;
}

export const count = (n, one, many) => `${n.toLocaleString()} ${n === 1 ? one : many || one + "s"}`;
