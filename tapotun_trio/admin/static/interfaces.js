// A card for each interface.

import { byId, el, Keyed, setAttribute, setShown, setText } from "./dom.js";
import { count, moment, plural, rate, reasons, since, size, total } from "./format.js";
import { ofInterface, summed } from "./model.js";

const TONES = { up: "good", connecting: "warn", starting: "warn", failed: "bad" };

export class Interfaces {
  #cards;

  /** `plot(key)`: show it in the plots. */
  constructor(plot) {
    this.#cards = new Keyed(byId("interfaces"), (name) => new Card(name, plot));
  }

  update(status, peers, now) {
    const cards = this.#cards.update(status.interfaces.map((it) => it.name));
    status.interfaces.forEach((it, i) => cards[i].update(it, peers.filter((one) => one.interfaceName === it.name), now));
  }
}

class Card {
  #kind = el("span", { class: "badge" });
  #state = el("span", {});
  #pill = el("p", { class: "pill" }, el("span", { class: "dot", "aria-hidden": "true" }), this.#state);
  #error = el("p", { class: "error" });
  #rows = new Map();

  constructor(name, plot) {
    const button = el("button", { class: "button small", type: "button" }, "Plot");
    button.setAttribute("aria-label", `Plot ${name}`);
    button.addEventListener("click", () => plot(ofInterface(name)));
    const list = el("dl", { class: "facts" });
    for (const label of ["Addresses", "MTU", "Listening", "Peers", "Received", "Sent", "Dropped", "Refused", "Restarts"]) {
      const value = el("dd", {});
      const row = el("div", {}, el("dt", {}, label), value);
      this.#rows.set(label, [row, value]);
      list.append(row);
    }
    const head = el("div", { class: "interface-head" }, el("h3", {}, name), this.#kind, this.#pill, button);
    this.nodes = [el("article", { class: "card interface", "aria-label": `Interface ${name}` }, head, this.#error, list)];
  }

  update(it, peers, now) {
    setText(this.#kind, it.kind);
    setAttribute(this.#pill, "data-tone", TONES[it.state] ?? "warn");
    setAttribute(this.#pill, "title", `since ${moment(Date.parse(it.since))}`);
    setText(this.#state, `${it.state} for ${since(it.since, now)}`);
    const why = it.last_error === null ? "" : it.state === "failed" ? it.last_error : it.restarts ? `Last failure: ${it.last_error}` : "";
    setText(this.#error, why);
    const sum = summed(peers);
    this.#fact("Addresses", it.addresses.join(", "));
    this.#fact("MTU", it.mtu_bytes === null ? "" : String(it.mtu_bytes));
    this.#fact("Listening", it.listen.map((at) => at.address + (it.path ?? "")).join(", "));
    this.#fact("Peers", it.kind === "server" ? `${count(sum.connected)} of ${count(sum.count)} connected` : peers.map((one) => one.peer.name).join(", "));
    this.#fact("Received", `${rate(sum.rx)}, ${size(sum.rxBytes)} in all`);
    this.#fact("Sent", `${rate(sum.tx)}, ${size(sum.txBytes)} in all`);
    this.#fact("Dropped", total(it.device_drops) ? reasons(it.device_drops) : "");
    const refused = { ...it.refusals };
    for (const at of it.listen) for (const [reason, number] of Object.entries(at.refusals)) refused[reason] = (refused[reason] ?? 0) + number;
    this.#fact("Refused", total(refused) ? reasons(refused) : "");
    this.#fact("Restarts", it.restarts ? plural(it.restarts, "time") : "");
  }

  #fact(label, text) {
    const [row, value] = this.#rows.get(label);
    setShown(row, text !== "");
    setText(value, text);
  }
}
