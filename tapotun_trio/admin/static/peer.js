// One peer: a row of the table, and on request a row below it with all details.

import { el, setAttribute, setShown, setText } from "./dom.js";
import { client, count, milliseconds, moment, NOTHING, plural, ranked, rate, reasons, since, size } from "./format.js";
import { spark } from "./plot.js";

const SPARK_MS = 120_000;
const TONES = { connected: "good", connecting: "warn", replaced: "bad", offline: "off" };
const TRANSPORTS = { http: "HTTP", websocket: "WebSocket" };
const UP_TO = "From the client to the server, or to the first proxy in between.";
// Label and explanation for each value of `encrypted` in the status. Nothing is shown if it is not known.
const ENCRYPTIONS = {
  true: ["encrypted", `The connection has TLS. ${UP_TO}`],
  false: ["not encrypted", `The connection has no TLS: anyone on the path can read packets and token. ${UP_TO}`],
};
let opened = 0; // number of detail rows made so far, for their ids

/** A cell of two lines: the value, and a detail. */
class Cell {
  main = el("span", { class: "main" });
  more = el("span", { class: "aside" });

  constructor(column) {
    this.node = el("td", { role: "cell", class: column.id, "data-label": column.label }, this.main, this.more);
  }

  set(main, more) {
    setText(this.main, main);
    setText(this.more, more);
  }
}

export class PeerRow {
  #context;
  #cells = new Map();
  #columns;
  #row = el("tr", { role: "row", class: "peer" });
  #toggle;
  #encryption = el("span", { class: "encryption" });
  #canvas = el("canvas", { class: "spark", role: "img", "aria-label": "Traffic of the last two minutes" });
  #disconnect = el(
    "button",
    { type: "button", class: "button small quiet", "data-needs-link": "", "data-acts": "" },
    "Disconnect",
  );
  #detail = null;
  #entry = null;
  #now = 0;

  constructor(context, columns) {
    this.#context = context;
    this.#columns = columns.length;
    for (const column of columns) {
      const cell = new Cell(column);
      this.#cells.set(column.id, cell);
      this.#row.append(cell.node);
    }
    const name = this.#cells.get("name");
    const chevron = el("span", { class: "chevron", "aria-hidden": "true" });
    this.#toggle = el("button", { type: "button", class: "toggle", "aria-expanded": "false" }, chevron, name.main);
    name.node.prepend(this.#toggle);
    this.#cells.get("endpoint").node.append(this.#encryption);
    const state = this.#cells.get("state");
    state.node.prepend(el("span", { class: "dot", "aria-hidden": "true" }));
    this.#cells.get("activity").node.replaceChildren(this.#canvas);
    this.#cells.get("actions").node.replaceChildren(this.#disconnect);
    this.#disconnect.addEventListener("click", () => {
      context.disconnect(this.#entry.interfaceName, this.#entry.peer.name);
    });
    this.#row.addEventListener("click", (event) => {
      // Not on a button with an action of its own, and not when text was selected.
      const button = event.target.closest("button");
      if (button === this.#toggle || (button === null && getSelection().isCollapsed)) this.#open(this.#detail === null);
    });
  }

  get nodes() {
    return this.#detail === null ? [this.#row] : [this.#row, this.#detail.node];
  }

  update(entry, now, several) {
    this.#entry = entry;
    this.#now = now;
    const { peer } = entry;
    const cell = (id) => this.#cells.get(id);
    setAttribute(this.#row, "data-tone", entry.trouble === null ? (TONES[peer.state] ?? "warn") : "warn");
    setAttribute(this.#row, "data-state", peer.state);
    cell("name").set(peer.name, [several ? entry.interfaceName : "", ...peer.addresses].filter(Boolean).join(" · "));
    const heard = peer.last_frame_at === null ? "" : `last frame ${since(peer.last_frame_at, now)} ago`;
    const seen = peer.last_seen_at === null ? "never seen" : `last seen ${since(peer.last_seen_at, now)} ago`;
    const here = peer.connected_since !== null;
    cell("state").set(peer.state, here ? (entry.trouble ?? `for ${since(peer.connected_since, now)}`) : seen);
    cell("endpoint").set(client(peer.endpoint) ?? NOTHING, peer.endpoint === null ? "" : software(peer));
    const [word, title] = ENCRYPTIONS[peer.encrypted] ?? ["", ""];
    setText(this.#encryption, word);
    setAttribute(this.#encryption, "title", title);
    setAttribute(this.#encryption, "data-encrypted", String(peer.encrypted));
    cell("rx").set(rate(peer.rates.rx_bits_per_s), size(peer.rx_bytes));
    cell("tx").set(rate(peer.rates.tx_bits_per_s), size(peer.tx_bytes));
    cell("rtt").set(milliseconds(entry.rtt), here ? heard : "");
    cell("drops").set(count(entry.dropped), ranked(peer.drops)[0]?.[0] ?? "");
    setShown(this.#disconnect, entry.kind === "server" && peer.state !== "offline");
    setAttribute(this.#disconnect, "aria-label", `Disconnect ${peer.name}`);
    const end = this.#context.history.end;
    spark(this.#canvas, this.#context.history.since(entry.key, end - SPARK_MS), end - SPARK_MS, end);
    this.#detail?.update(entry, now);
  }

  #open(open) {
    if (open) {
      this.#detail = new Detail(this.#columns, () => this.#context.plot(this.#entry.key));
      this.#detail.update(this.#entry, this.#now);
      this.#row.after(this.#detail.node);
      this.#toggle.setAttribute("aria-controls", this.#detail.node.id);
    } else {
      this.#detail.node.remove();
      this.#detail = null;
      this.#toggle.removeAttribute("aria-controls");
    }
    this.#toggle.setAttribute("aria-expanded", String(open));
    this.#row.classList.toggle("open", open);
  }
}

class Detail {
  #facts = new Map();
  #list = el("dl", { class: "facts" });

  constructor(columns, plot) {
    opened += 1;
    const button = el("button", { type: "button", class: "button small" }, "Plot this peer");
    button.addEventListener("click", plot);
    const cell = el("td", { role: "cell", colspan: String(columns) }, this.#list, el("p", {}, button));
    this.node = el("tr", { role: "row", class: "detail", id: `peer-detail-${opened}` }, cell);
  }

  update({ peer, interfaceName, trouble }, now) {
    const at = (time) => (time === null ? NOTHING : `${moment(Date.parse(time))}, ${since(time, now)} ago`);
    const listed = (items) => items.join(", ") || "none";
    this.#set("Interface", interfaceName);
    this.#set("Addresses", listed(peer.addresses));
    this.#set("Routes", listed(peer.routes));
    this.#set("Sources", listed(peer.sources));
    this.#set("Endpoint", peer.endpoint ?? NOTHING);
    this.#set("Transport", TRANSPORTS[peer.transport] ?? NOTHING);
    const proxied = peer.encrypted === true ? "up to its proxy, as that says" : undefined;
    this.#set("Encryption", peer.tls ?? proxied ?? { false: "none" }[peer.encrypted] ?? "not known");
    const protocol = { true: "extended protocol", false: "base protocol" }[peer.extended];
    this.#set("Software", peer.agent ?? protocol ?? NOTHING);
    this.#set("IPv6", { true: "carried", false: "not carried" }[peer.ipv6] ?? "not known");
    this.#set("Connected since", at(peer.connected_since));
    this.#set("Last heard", at(peer.last_frame_at));
    this.#set("Last seen", at(peer.last_seen_at));
    this.#set("Trouble", trouble ?? "none");
    this.#set("Received", `${size(peer.rx_bytes)} in ${plural(peer.rx_packets, "packet")}`);
    this.#set("Sent", `${size(peer.tx_bytes)} in ${plural(peer.tx_packets, "packet")}`);
    const { last_ms, smoothed_ms, min_ms } = peer.rtt;
    const trips = `${milliseconds(last_ms)}, mean ${milliseconds(smoothed_ms)}, min ${milliseconds(min_ms)}`;
    this.#set("Round trip", last_ms === null ? NOTHING : trips);
    this.#set("Waiting to be sent", `${size(peer.outbox.bytes)} in ${plural(peer.outbox.packets, "packet")}`);
    this.#set("Dropped", reasons(peer.drops));
    this.#set("Streams that broke", reasons(peer.stream_ends));
    this.#set("Reconnects", count(peer.reconnects));
  }

  #set(label, text) {
    if (!this.#facts.has(label)) {
      const value = el("dd", {});
      this.#facts.set(label, value);
      this.#list.append(el("div", {}, el("dt", {}, label), value));
    }
    setText(this.#facts.get(label), text);
  }
}

function software(peer) {
  const named = peer.agent ?? (peer.extended === false ? "base protocol" : "");
  return [TRANSPORTS[peer.transport] ?? "", named].filter(Boolean).join(" · ");
}
