// Formats numbers and times like `tapotun status`. Uses neither the DOM nor a clock.

const SIZES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const RATES = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
const SPANS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

export const NOTHING = "–";

/** `1.23 MiB`: three digits and a binary prefix. */
export function size(bytes) {
  return scaled(bytes, 1024, SIZES);
}

/** `93.1 Mbit/s`: three digits and a decimal prefix, as links are sold. */
export function rate(bitsPerSecond) {
  return scaled(bitsPerSecond, 1000, RATES);
}

function scaled(value, base, units) {
  let at = 0;
  while (value >= base - 0.5 && at < units.length - 1) {
    value /= base;
    at += 1;
  }
  const digits = at === 0 ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return `${value.toFixed(digits)} ${units[at]}`;
}

/** `12.3 ms`; a dash if it is unknown. */
export function milliseconds(value) {
  if (value === null || Number.isNaN(value)) return NOTHING;
  if (value >= 1000) return `${(value / 1000).toFixed(1)} s`;
  return `${value.toFixed(value < 9.995 ? 2 : 1)} ms`;
}

/** `1,234,567` */
export function count(number) {
  return number.toLocaleString("en");
}

/** The client of an endpoint, without proxies: `203.0.113.7` for `203.0.113.7 (through 127.0.0.1:51234)`; or null. */
export function client(endpoint) {
  return endpoint?.split(/ \(?through /)[0] ?? null;
}

/** `1 peer`, `3 peers` */
export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** A duration in its two largest units, `3 h 12 min`; `0 s` if it is negative, after a clock was set. */
export function span(ms) {
  let seconds = Math.max(Math.floor(ms / 1000), 0);
  const parts = [];
  for (const [name, length] of SPANS) {
    const number = Math.floor(seconds / length);
    seconds -= number * length;
    if (parts.length && !number) break;
    if (number) parts.push(`${number} ${name}`);
    if (parts.length === 2) break;
  }
  return parts.join(" ") || "0 s";
}

/** The time from a moment to `now` (ms), or a dash. */
export function since(moment, now) {
  return moment === null ? NOTHING : span(now - Date.parse(moment));
}

const pad = (number) => String(number).padStart(2, "0");

/** `07:22:45`, in the reader's time zone. */
export function clock(ms, seconds = true) {
  const date = new Date(ms);
  return `${pad(date.getHours())}:${pad(date.getMinutes())}${seconds ? `:${pad(date.getSeconds())}` : ""}`;
}

/** `2026-11-28 07:22:45`, in the reader's time zone. */
export function moment(ms) {
  const date = new Date(ms);
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} ${clock(ms)}`;
}

/** `40 codel, 2 queue-age`: the most frequent first, without zeros. */
export function reasons(counts) {
  return ranked(counts).map(([reason, number]) => `${count(number)} ${reason}`).join(", ") || "none";
}

/** [reason, number], the most frequent first, without zeros. */
export function ranked(counts) {
  return Object.entries(counts)
    .filter(([, number]) => number > 0)
    .sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1));
}

/** The sum of an object's numbers. */
export function total(counts) {
  return Object.values(counts).reduce((sum, number) => sum + number, 0);
}
