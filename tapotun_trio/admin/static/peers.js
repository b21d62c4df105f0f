// The table of peers: search, filter, sort, rows updated in place. It shows the first rows, and more on request.

import { byId, el, Keyed, setAttribute, setShown, setText } from "./dom.js";
import { count, plural } from "./format.js";
import { PeerRow } from "./peer.js";

const FIRST_ROWS = 50;
const MORE_ROWS = 100;
const RESORT_MS = 5000; // rows that jump every second cannot be read

const { compare } = new Intl.Collator("en", { numeric: true });
const byName = (a, b) => compare(a.interfaceName, b.interfaceName) || compare(a.peer.name, b.peer.name);
// Peers without an endpoint come last.
const byEndpoint = (a, b) => compare(a.peer.endpoint ?? "\uffff", b.peer.endpoint ?? "\uffff");
const byTraffic = (field) => ({ peer: a }, { peer: b }) =>
  b.rates[`${field}_bits_per_s`] - a.rates[`${field}_bits_per_s`] || b[`${field}_bytes`] - a[`${field}_bytes`];
// `order`: the order after the first click; `descending`: this order is from the largest down.
const COLUMNS = [
  { id: "name", label: "Peer", order: byName },
  { id: "state", label: "State", order: (a, b) => a.rank - b.rank },
  { id: "endpoint", label: "Endpoint", order: byEndpoint },
  { id: "activity", label: "Last 2 min", order: null },
  { id: "rx", descending: true, label: "Received", order: byTraffic("rx") },
  { id: "tx", descending: true, label: "Sent", order: byTraffic("tx") },
  { id: "rtt", descending: true, label: "Round trip", order: (a, b) => (b.rtt ?? -1) - (a.rtt ?? -1) },
  { id: "drops", descending: true, label: "Drops", order: (a, b) => b.dropped - a.dropped },
  { id: "actions", label: "", order: null },
];

export class Peers {
  #context;
  #rows;
  #heads = new Map();
  #sort = { id: "state", reversed: false };
  #limit = FIRST_ROWS;
  #order = []; // keys in the order of the last sort
  #sortedAt = 0;
  #peers = [];
  #now = 0;
  #search = byId("peers-search");
  #which = byId("peers-which");
  #sortSelect = byId("peers-sort");

  /** `context`: {history, plot(key), disconnect(interface, peer)}. */
  constructor(context) {
    this.#context = context;
    this.#rows = new Keyed(byId("peers-body"), () => new PeerRow(context, COLUMNS));
    for (const column of COLUMNS) this.#addHead(column);
    this.#sortSelect.addEventListener("change", () => this.#sortBy(this.#sortSelect.value, false));
    this.#search.addEventListener("input", () => this.#showFirst(FIRST_ROWS));
    this.#which.addEventListener("change", () => this.#showFirst(FIRST_ROWS));
    byId("peers-more-button").addEventListener("click", () => this.#showFirst(this.#limit + MORE_ROWS));
    byId("peers-all-button").addEventListener("click", () => this.#showFirst(Infinity));
    this.#markSort();
  }

  update(peers, now) {
    this.#peers = peers;
    this.#now = now;
    this.#show();
  }

  /** Redraw the canvases. */
  repaint() {
    this.#show();
  }

  #addHead(column) {
    const cell = el("th", { role: "columnheader", scope: "col", class: column.id });
    if (column.order === null) {
      cell.append(column.label || el("span", { class: "visually-hidden" }, "Actions"));
    } else {
      const arrow = el("span", { class: "arrow", "aria-hidden": "true" });
      const button = el("button", { type: "button", class: "sort" }, column.label, arrow);
      button.addEventListener("click", () => {
        const again = this.#sort.id === column.id;
        this.#sortBy(column.id, again && !this.#sort.reversed);
      });
      cell.append(button);
      this.#heads.set(column.id, cell);
      this.#sortSelect.append(el("option", { value: column.id }, column.label));
    }
    byId("peers-head").append(cell);
  }

  #sortBy(id, reversed) {
    this.#sort = { id, reversed };
    this.#sortedAt = 0;
    this.#markSort();
    this.#show();
  }

  #markSort() {
    for (const [id, cell] of this.#heads) {
      const descending = Boolean(COLUMNS.find((column) => column.id === id).descending) !== this.#sort.reversed;
      setAttribute(cell, "aria-sort", id !== this.#sort.id ? null : descending ? "descending" : "ascending");
    }
    this.#sortSelect.value = this.#sort.id;
  }

  /** Show up to `limit` rows. */
  #showFirst(limit) {
    this.#limit = limit;
    this.#show();
  }

  #matching() {
    const words = this.#search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const which = this.#which.value;
    return this.#peers.filter((entry) => {
      if (which === "connected" && entry.peer.state !== "connected") return false;
      if (which === "not-connected" && entry.peer.state === "connected") return false;
      if (which === "dropping" && entry.dropped === 0) return false;
      if (!words.length) return true;
      const { name, state, endpoint, agent, transport, addresses, routes, sources } = entry.peer;
      const encryption = { true: "encrypted", false: "not encrypted" }[entry.peer.encrypted];
      const named = [name, entry.interfaceName, state, endpoint, agent, transport, encryption];
      const text = [...named, ...addresses, ...routes, ...sources].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  // A peer keeps its place until the next sort, at most every five seconds; new peers come last until then.
  #sorted(peers) {
    const now = performance.now();
    if (now - this.#sortedAt > RESORT_MS || this.#sortedAt === 0) {
      this.#sortedAt = now;
      const { order } = COLUMNS.find((column) => column.id === this.#sort.id);
      const all = [...this.#peers].sort((a, b) => order(a, b) || byName(a, b));
      this.#order = (this.#sort.reversed ? all.reverse() : all).map((entry) => entry.key);
    }
    const place = new Map(this.#order.map((key, i) => [key, i]));
    return peers.sort((a, b) => (place.get(a.key) ?? Infinity) - (place.get(b.key) ?? Infinity) || 0);
  }

  #show() {
    const found = this.#sorted(this.#matching());
    const shown = found.slice(0, this.#limit);
    const several = new Set(this.#peers.map((entry) => entry.interfaceName)).size > 1;
    const rows = this.#rows.update(shown.map((entry) => entry.key));
    shown.forEach((entry, i) => rows[i].update(entry, this.#now, several));
    const connected = this.#peers.filter((entry) => entry.peer.state === "connected").length;
    setText(byId("peers-count"), `${count(connected)} of ${count(this.#peers.length)} connected`);
    setShown(byId("peers-none"), found.length === 0);
    setText(byId("peers-none"), this.#peers.length ? "No peer matches." : "There are no peers.");
    setShown(byId("peers-more"), found.length > shown.length);
    setText(byId("peers-more-text"), `${count(shown.length)} of ${plural(found.length, "peer")} shown`);
  }
}
