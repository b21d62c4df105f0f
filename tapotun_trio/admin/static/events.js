// The daemon's log lines, newest first, and events that this page has noticed itself.

import { byId, el, setChildren, setShown, setText } from "./dom.js";
import { clock, moment } from "./format.js";

const KEPT = 1000;
const SHOWN = 300;
const LEVELS = ["info", "warning", "error"];

/** An unknown level ranks highest. */
function rank(level) {
  const at = LEVELS.indexOf(level);
  return at < 0 ? LEVELS.length : at;
}

/** A new list item with the event. */
export function eventItem(event) {
  const exact = { datetime: new Date(event.time).toISOString(), title: moment(event.time) };
  const time = el("time", exact, clock(event.time));
  const level = el("span", { class: "level" }, event.level);
  const text = el("span", { class: "event-text" });
  const place = event.ours ? "this page" : event.interface;
  if (place !== null) text.append(el("span", { class: "event-place" }, place), " ");
  text.append(event.text);
  return el("li", { "data-level": event.level }, time, level, text);
}

export class Events {
  #events = []; // oldest first
  #known = new Set(); // numbers restart with the daemon, so a key includes the time
  #nodes = new WeakMap();
  #list = byId("events-list");
  #search = byId("events-search");
  #level = byId("events-level");

  constructor() {
    this.#search.addEventListener("input", () => this.#show());
    this.#level.addEventListener("change", () => this.#show());
    this.#show();
  }

  /** Add the events of a live message; some may be known already. */
  add(events) {
    let changed = false;
    for (const event of events) {
      const key = `${event.number} ${event.at} ${event.text}`;
      if (this.#known.has(key)) continue;
      this.#known.add(key);
      this.#events.push({ ...event, key, time: Date.parse(event.at) });
      changed = true;
    }
    if (changed) this.#changed();
  }

  /** Add an event of this page itself. */
  note(level, text) {
    this.#events.push({ key: null, level, text, interface: null, time: Date.now(), ours: true });
    this.#changed();
  }

  /** The events since `from` (ms), oldest first: {time, level, interface, text, ours}. */
  since(from) {
    return this.#events.filter(({ time }) => time >= from);
  }

  #changed() {
    for (const event of this.#events.splice(0, this.#events.length - KEPT)) this.#known.delete(event.key);
    this.#show();
  }

  #show() {
    const least = rank(this.#level.value);
    const words = this.#search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.#events.filter((event) => {
      if (rank(event.level) < least) return false;
      const text = `${event.interface ?? ""} ${event.text}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const atTop = this.#list.scrollTop < 4;
    const before = this.#list.scrollHeight;
    setChildren(this.#list, found.slice(-SHOWN).reverse().map((event) => this.#node(event)));
    // Keep the place of a reader who has scrolled down.
    if (!atTop) this.#list.scrollTop += this.#list.scrollHeight - before;
    setShown(this.#list, found.length > 0);
    setShown(byId("events-none"), found.length === 0);
    setText(byId("events-none"), this.#events.length ? "No event matches." : "Nothing has happened yet.");
  }

  #node(event) {
    if (!this.#nodes.has(event)) this.#nodes.set(event, eventItem(event));
    return this.#nodes.get(event);
  }
}
