// A card for each interface.

import { byId, el, Keyed, setAttribute, setShown, setText } from "./dom.js";
import { count, moment, plural, rate, reasons, since, size, total } from "./format.js";
import { MacTable } from "./macs.js";
import { added, ofInterface, summed } from "./model.js";

const TRAFFIC = ["Received", "Sent", "Dropped", "Refused"];
const FACTS = ["Device", "Addresses", "MTU", "Listening", "Peers", ...TRAFFIC, "Flooded", "Restarts", "Repairs"];
const TONES = { up: "good", connecting: "warn", starting: "warn", degraded: "warn", failed: "bad" };

export class Interfaces {
  #cards;

  /** `plot(key)` shows that series in the plots. `macs()` returns the tables of MAC addresses; throws Refused. */
  constructor(plot, macs) {
    this.#cards = new Keyed(byId("interfaces"), (name) => new Card(name, plot, macs));
  }

  update(status, peers, now) {
    const cards = this.#cards.update(status.interfaces.map(({ name }) => name));
    status.interfaces.forEach((one, i) => {
      const own = peers.filter(({ interfaceName }) => interfaceName === one.name);
      cards[i].update(one, own, now);
    });
  }
}

class Card {
  #kind = el("span", { class: "badge" });
  #state = el("span", {});
  #pill = el("p", { class: "pill" }, el("span", { class: "dot", "aria-hidden": "true" }), this.#state);
  #error = el("p", { class: "error" });
  #rows = new Map();

  #macs;

  constructor(name, plot, macs) {
    const button = el("button", { class: "button small", type: "button" }, "Plot");
    button.setAttribute("aria-label", `Plot ${name}`);
    button.addEventListener("click", () => plot(ofInterface(name)));
    const list = el("dl", { class: "facts" });
    for (const label of FACTS) {
      const value = el("dd", {});
      const row = el("div", {}, el("dt", {}, label), value);
      this.#rows.set(label, [row, value]);
      list.append(row);
    }
    const head = el("div", { class: "interface-head" }, el("h3", {}, name), this.#kind, this.#pill, button);
    const named = { class: "card interface", "aria-label": `Interface ${name}` };
    this.#macs = new MacTable(name, macs);
    this.nodes = [el("article", named, head, this.#error, list, this.#macs.node)];
  }

  update(status, peers, now) {
    setText(this.#kind, status.kind);
    setAttribute(this.#pill, "data-tone", TONES[status.state] ?? "warn");
    setAttribute(this.#pill, "title", `since ${moment(Date.parse(status.since))}`);
    setText(this.#state, `${status.state} for ${since(status.since, now)}`);
    const why = status.last_error ?? "";
    const last = status.state === "failed" || why === "" ? why : `Last failure: ${why}`;
    setText(this.#error, status.degraded ?? last);
    const sum = summed(peers);
    const bridge = status.bridge === null ? "" : `, port of bridge ${status.bridge}`;
    this.#fact("Device", status.device === "tap" ? `TAP ${status.mac ?? ""}${bridge}` : "");
    this.#fact("Addresses", status.addresses.join(", "));
    this.#fact("MTU", status.mtu_bytes === null ? "" : String(status.mtu_bytes));
    this.#fact("Listening", status.listen.map((at) => at.address + (status.path ?? "")).join(", "));
    const clients = `${count(sum.connected)} of ${count(sum.count)} connected`;
    this.#fact("Peers", status.kind === "server" ? clients : peers.map((one) => one.peer.name).join(", "));
    this.#fact("Received", `${rate(sum.rx)}, ${size(sum.rxBytes)} in all`);
    this.#fact("Sent", `${rate(sum.tx)}, ${size(sum.txBytes)} in all`);
    this.#fact("Dropped", total(status.device_drops) ? reasons(status.device_drops) : "");
    const refused = added(status.refusals, ...status.listen.map((at) => at.refusals));
    this.#fact("Refused", total(refused) ? reasons(refused) : "");
    this.#fact("Flooded", status.flooded_packets ? plural(status.flooded_packets, "packet") : "");
    this.#macs.update(status.macs);
    this.#fact("Restarts", status.restarts ? plural(status.restarts, "time") : "");
    this.#fact("Repairs", status.repairs ? plural(status.repairs, "time") : "");
  }

  #fact(label, text) {
    const [row, value] = this.#rows.get(label);
    setShown(row, text !== "");
    setText(value, text);
  }
}
