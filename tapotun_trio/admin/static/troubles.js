// Dropped packets, refused requests and broken streams: counts by reason, with the meaning of each reason.

import { byId, el, Keyed, setShown, setText } from "./dom.js";
import { count } from "./format.js";
import { Recently, sumOf } from "./model.js";
import { HTTP_MEANING, MEANINGS } from "./reasons.js";

function meaningOf(kind, reason) {
  if (Object.hasOwn(MEANINGS[kind], reason)) return MEANINGS[kind][reason];
  return reason.startsWith("http-") ? HTTP_MEANING : "";
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
    const explained = el("span", { class: "muted" }, meaning ? `${meaning} · ` : "");
    const more = el("div", { class: "small" }, explained, this.#where);
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
