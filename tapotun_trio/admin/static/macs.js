// The table of the switch of a TAP interface: which client each MAC address is behind. Loaded when it is opened.

import { el, setShown, setText } from "./dom.js";
import { count, span } from "./format.js";

const AGAIN_MS = 5000; // between two requests while it is open

export class MacTable {
  #name;
  #load;
  #summary = el("summary", {});
  #body = el("tbody", {});
  #more = el("p", { class: "muted small" });
  #loadedAt = -Infinity;
  #loading = false;

  /** `load()` returns the tables of all interfaces; throws Refused. */
  constructor(name, load) {
    this.#name = name;
    this.#load = load;
    const titles = ["MAC address", "Behind", "Looked up"].map((text) => el("th", { scope: "col" }, text));
    const table = el("table", { class: "macs" }, el("thead", {}, el("tr", {}, ...titles)), this.#body);
    this.node = el("details", { class: "macs-details" }, this.#summary, table, this.#more);
    this.node.hidden = true;
    this.node.addEventListener("toggle", () => this.#refresh());
  }

  /** `macs`: how many addresses there are; null: the interface has no such table. */
  update(macs) {
    setShown(this.node, macs !== null && macs !== undefined); // an older daemon has no such field
    setText(this.#summary, macs === 1 ? "1 MAC address" : `${count(macs ?? 0)} MAC addresses`);
    if (performance.now() - this.#loadedAt >= AGAIN_MS) this.#refresh();
  }

  async #refresh() {
    if (!this.node.open || this.node.hidden || this.#loading) return;
    this.#loading = true;
    try {
      const { interfaces } = await this.#load();
      const own = interfaces.find((table) => table.interface === this.#name);
      if (own !== undefined) this.#show(own);
    } catch (refusal) {
      setText(this.#more, `Not loaded: ${refusal.message}.`);
    } finally {
      this.#loading = false;
      this.#loadedAt = performance.now();
    }
  }

  #show({ total, macs }) {
    const rows = macs
      .map((one) => ({ ...one, behind: one.client ?? "" }))
      .sort((a, b) => a.behind.localeCompare(b.behind) || a.mac.localeCompare(b.mac))
      .map(({ mac, client, age_s: age, pinned }) => {
        const when = age === null ? "" : `${span(age * 1000)} ago`;
        // Those of the config are each a client's. So this is the address of the server's TAP interface, or of its
        // bridge.
        const fixed = pinned ? (client === null ? "this server" : "pinned") : "";
        const cells = [mac, client ?? "the server's side", [fixed, when].filter(Boolean).join(", ")];
        return el("tr", {}, ...cells.map((text) => el("td", {}, text)));
      });
    this.#body.replaceChildren(...rows);
    setText(this.#more, total > macs.length ? `and ${count(total - macs.length)} more: tapotun status --macs` : "");
  }
}
