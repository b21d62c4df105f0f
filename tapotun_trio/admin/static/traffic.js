// The figures at the top, and the two plots: of everything, an interface or a peer.

import { byId, el, setShown, setText } from "./dom.js";
import { eventItem } from "./events.js";
import { count, milliseconds, NOTHING, plural, rate, size } from "./format.js";
import { ALL, ofInterface, Recently, sumOf, summed } from "./model.js";
import { Cursor, Plot } from "./plot.js";

const LISTED = 5; // number of events below the plots

export class Traffic {
  #history;
  #scope = byId("plot-scope");
  #span = byId("plot-span");
  #scopes = "";
  #chosen = ALL; // it may be absent for a while, as the peers of a failed interface are
  #rate;
  #trips;
  #recently = new Recently();
  #peers = new Map();
  #events;
  #listed = []; // the events in the list below the plots
  #list = byId("plot-events");

  /** `events(from)`: returns the events since `from` (ms), oldest first. */
  constructor(history, events) {
    this.#history = history;
    this.#events = events;
    const cursor = new Cursor();
    this.#rate = new Plot(byId("plot-rate"), {
      title: "Throughput",
      lines: [
        { field: "rx", label: "Received", colour: "--rx", fill: true },
        { field: "tx", label: "Sent", colour: "--tx", fill: true },
      ],
      format: rate,
      least: 1000,
      cursor,
    });
    this.#trips = new Plot(byId("plot-rtt"), {
      title: "Round trip",
      lines: [
        { field: "rtt", label: "Median", colour: "--rtt", fill: false },
        { field: "high", label: "Slowest", colour: "--high", fill: false },
      ],
      format: milliseconds,
      least: 1,
      cursor,
    });
    this.#scope.addEventListener("change", () => {
      this.#chosen = this.#scope.value;
    });
    for (const control of [this.#scope, this.#span]) control.addEventListener("change", () => this.plot());
  }

  update(status, peers, troubles, at) {
    const sum = summed(peers);
    setText(byId("total-rx"), rate(sum.rx));
    setText(byId("total-tx"), rate(sum.tx));
    setText(byId("total-rx-bytes"), `${size(sum.rxBytes)} in all`);
    setText(byId("total-tx-bytes"), `${size(sum.txBytes)} in all`);
    setText(byId("total-peers"), `${count(sum.connected)} of ${count(sum.count)}`);
    const up = status.interfaces.filter((iface) => iface.state === "up").length;
    setText(byId("total-peers-more"), `${up} of ${plural(status.interfaces.length, "interface")} up`);
    setText(byId("total-rtt"), milliseconds(sum.rtt));
    const trips = sum.count === 1 ? "last ping" : `median, slowest ${milliseconds(sum.high)}`;
    setText(byId("total-rtt-more"), sum.rtt === null ? "no ping answered yet" : trips);
    const dropped = sumOf(troubles.packets);
    setText(byId("total-drops"), count(dropped));
    const grown = this.#recently.growth(at, new Map([["drops", dropped]])).get("drops");
    setText(byId("total-drops-more"), `${count(grown)} in the last minute`);
    this.#peers = new Map(peers.map((entry) => [entry.key, entry]));
    this.#offer(status, peers);
    this.plot();
  }

  /** Plot that peer or interface, and scroll to the plots. */
  select(key) {
    this.#scope.value = this.#chosen = key;
    this.plot();
    byId("plots").scrollIntoView({ block: "start" });
    this.#scope.focus({ preventScroll: true });
  }

  plot() {
    const end = this.#history.end;
    if (end === null) return;
    const from = end - Number(this.#span.value) * 1000;
    const data = this.#history.since(this.#scope.value, from - 2000);
    const name = this.#scope.selectedOptions[0]?.textContent ?? NOTHING;
    this.#trips.label(this.#peers.has(this.#scope.value) ? ["Last ping", "Smoothed"] : ["Median", "Slowest"]);
    const events = this.#events(from).filter((event) => this.#concerns(event));
    this.#rate.show(data, from, end, name, events);
    this.#trips.show(data, from, end, name, events);
    this.#showList(events.slice(-LISTED).reverse());
  }

  /** Whether the event is about the plotted series. A server's lines about a client begin with the client's name. */
  #concerns({ interface: place, text, ours }) {
    const scope = this.#scope.value;
    if (scope === ALL || ours) return true;
    const entry = this.#peers.get(scope);
    if (entry === undefined) return place !== null && scope === ofInterface(place);
    return place === entry.interfaceName && (entry.kind === "client" || text.startsWith(`${entry.peer.name}: `));
  }

  #showList(events) {
    if (events.length === this.#listed.length && events.every((event, i) => event === this.#listed[i])) return;
    this.#listed = events;
    this.#list.replaceChildren(...events.map(eventItem));
    setShown(this.#list, events.length > 0);
  }

  // The list is rebuilt only when names change, because that closes an open list.
  #offer(status, peers) {
    const names = JSON.stringify([status.interfaces.map(({ name }) => name), peers.map(({ key }) => key)]);
    if (names === this.#scopes) return;
    this.#scopes = names;
    const groups = status.interfaces.map((iface) => {
      const whole = el("option", { value: ofInterface(iface.name) }, `${iface.name}, whole`);
      const own = peers.filter((one) => one.interfaceName === iface.name);
      const each = own.map((one) => el("option", { value: one.key }, one.peer.name));
      return el("optgroup", { label: iface.name }, whole, ...each);
    });
    this.#scope.replaceChildren(el("option", { value: ALL }, "everything"), ...groups);
    this.#scope.value = this.#chosen;
    if (this.#scope.selectedIndex < 0) this.#scope.value = ALL;
    setShown(this.#scope.parentElement, peers.length > 0);
  }
}
