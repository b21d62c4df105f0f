// What was dropped, refused and broken, by reason, with what each reason means.

import { byId, el, Keyed, setShown, setText } from "./dom.js";
import { count } from "./format.js";
import { Recently, sumOf } from "./model.js";

const MEANINGS = {
  packets: {
    "not-ipv4": "another protocol than IPv4, which this interface does not carry",
    "no-route": "nobody has this destination",
    "bad-source": "the peer may not use this source address",
    "queue-full": "the outbox was full",
    "queue-age": "waited too long to be sent",
    codel: "the queue stood too long; senders are to slow down",
    "device-full": "the TUN device took nothing for too long",
    "device-refused": "the kernel refused the packet",
    "no-memory": "this machine had no memory for the packet",
    "internal-error": "a bug in this program; the log has its traceback",
  },
  requests: {
    "bad-token": "a token that is not in the config, or none",
    "bad-method": "neither GET nor PUT",
    "other-session": "of a machine whose place another one with the same token has",
    "unknown-path": "a path that no interface has",
    "bad-request": "no proper HTTP request",
    "slow-request": "a request that did not come to its end",
    evicted: "too many connections that had shown no token",
    "bad-proxy-header": "no proper PROXY protocol header",
    "untrusted-proxy": "a PROXY header from where none is trusted",
    "internal-error": "a bug in this program; the log has its traceback",
    closed: "closed before its request was whole",
    broken: "the connection broke before its request was whole",
    "no-descriptors": "this machine had no file descriptor left; the log has the limit",
    "no-memory": "this machine had no memory left",
    "no-space": "this machine had no space left",
    "no-thread": "this machine could start no thread",
    "no-address-family": "this machine does not have that address family",
  },
  streams: {
    broken: "the connection broke",
    silent: "nothing came, or no ping was answered",
    closed: "closed without its proper end",
    ended: "the other end ended the upload early",
    moved: "a WebSocket took its place",
    dns: "the server's name does not resolve",
    connect: "no connection",
    refused: "nobody listens there",
    proxy: "the outgoing proxy makes no connection",
    tls: "no TLS that both ends accept; the log has the reason",
    disconnected: "ended by the operator",
    replaced: "another machine uses the token",
    stalled: "the other end took nothing any more",
    "bad-frame": "malformed frames",
    "bad-chunk": "malformed chunks",
    "bad-vnet": "impossible packet headers",
    "bad-conf": "the answer has no usable x-tun-conf",
    "bad-params": "parameters from the server that cannot be used",
    "own-address": "the address that the server gives would take away its own",
    "bad-response": "no proper HTTP answer",
    "bad-websocket": "a malformed WebSocket",
    "ws-closed": "the other end closed the WebSocket with an error",
    "no-websocket": "something on the way lets no WebSocket pass",
    "internal-error": "a bug in this program; the log has its traceback",
    pipelining: "too much came behind an upload's end",
    "address-gone": "the local address went away",
    "no-descriptors": "this machine had no file descriptor left; the log has the limit",
    "no-memory": "this machine had no memory left",
    "no-space": "this machine had no space left",
    "no-thread": "this machine could start no thread",
    "no-address-family": "this machine does not have that address family",
  },
};
const ANSWERED = "an answer with that status, from the server or a proxy";

function meaningOf(kind, reason) {
  if (Object.hasOwn(MEANINGS[kind], reason)) return MEANINGS[kind][reason];
  return reason.startsWith("http-") ? ANSWERED : "";
}

const TITLES = { packets: "Packets dropped", requests: "Requests refused", streams: "Streams broken" };
const PLACES = 3;

export class Troubles {
  #groups = Object.keys(TITLES).map((kind) => new Group(kind));

  constructor() {
    byId("drops-body").append(...this.#groups.map((group) => group.node));
  }

  update(troubles, at) {
    for (const group of this.#groups) group.update(troubles[group.kind], at);
  }
}

class Group {
  #total = el("span", { class: "muted" });
  #list = el("ul", { class: "reasons" });
  #rows = new Keyed(this.#list, (reason) => new Row(reason, meaningOf(this.kind, reason)));
  #recently = new Recently();

  constructor(kind) {
    this.kind = kind;
    this.node = el("div", { class: "reason-group" }, el("h3", {}, `${TITLES[kind]} `, this.#total), this.#list);
  }

  update(trouble, at) {
    const grown = this.#recently.growth(at, new Map([...trouble].map(([reason, { number }]) => [reason, number])));
    const sum = sumOf(trouble);
    setText(this.#total, sum ? count(sum) : "none");
    const order = (a, b) => trouble.get(b).number - trouble.get(a).number || (a < b ? -1 : 1);
    const reasons = [...trouble.keys()].sort(order);
    const rows = this.#rows.update(reasons);
    reasons.forEach((reason, i) => rows[i].update(trouble.get(reason), grown.get(reason), sum));
    setShown(this.#list, sum > 0);
  }
}

class Row {
  #number = el("span", { class: "number" });
  #grown = el("span", { class: "badge warn" });
  #where = el("span", { class: "muted" });
  #bar = el("span", { class: "bar", "aria-hidden": "true" });

  constructor(reason, meaning) {
    const name = el("span", { class: "reason" }, reason);
    const line = el("div", { class: "reason-line" }, name, this.#grown, this.#number);
    const told = el("span", { class: "muted" }, meaning ? `${meaning} · ` : "");
    const more = el("div", { class: "small" }, told, this.#where);
    this.nodes = [el("li", {}, line, this.#bar, more)];
  }

  update({ number, where }, grown, sum) {
    setText(this.#number, count(number));
    setText(this.#grown, `+${count(grown)} in the last minute`);
    setShown(this.#grown, grown > 0);
    this.#bar.style.width = `${((100 * number) / sum).toFixed(1)}%`;
    const places = [...where].sort(([, a], [, b]) => b - a);
    const named = places.slice(0, PLACES).map(([place, its]) => (places.length > 1 ? `${place} ${count(its)}` : place));
    if (places.length > PLACES) named.push(`${places.length - PLACES} more`);
    setText(this.#where, named.join(", "));
  }
}
