// Line plots over time on a canvas, and small ones without axes. The pointer or the arrow keys select a moment.

import { el, setAttribute, setText } from "./dom.js";
import { clock, plural } from "./format.js";

const HEIGHT = 190;
const TOP = 8;
const BOTTOM = 22;
const GAP_MS = 12_000; // a longer gap breaks the line; the daemon's history has a sample every five seconds
const MARKS = 100; // at most this many events are marked, the newest ones
const MARK_COLOURS = { info: "--border", warning: "--warn", error: "--bad" };
const STEPS_S = [15, 30, 60, 120, 300];
const TICK_WIDTH = 72; // px that a time label needs

let colours = new Map();

/** Call it after the colour scheme has changed. */
export function forgetColours() {
  colours = new Map();
}

function colour(name) {
  if (!colours.has(name)) colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  return colours.get(name);
}

/** The cleared context of a canvas in the screen's resolution, scaled so that a unit is a CSS pixel. */
function prepared(canvas, width, height) {
  const ratio = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

/** The smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is not less than the value. */
function niceStep(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((step) => step >= value * 0.9999);
}

function legendItem(colourName, ...content) {
  const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
  return el("span", { class: `legend-item ${colourName.slice(2)}` }, swatch, ...content);
}

/** Plots that show the same moment. */
export class Cursor {
  at = null; // ms
  #plots = [];

  add(plot) {
    this.#plots.push(plot);
  }

  move(at) {
    this.at = at;
    for (const plot of this.#plots) plot.paint();
  }
}

export class Plot {
  #figure;
  #lines;
  #format;
  #least;
  #cursor;
  #canvas;
  #tip;
  #values = new Map();
  #labels = [];
  #view = null; // {data, from, to, name}
  #box = null; // {left, right, top, bottom} of the area, px

  /**
   * `lines`: [{field, label, colour, fill}]; `format(value)`: with its unit; `least`: the minimum range of
   * the scale, so that noise does not fill the plot.
   */
  constructor(figure, { title, lines, format, least, cursor }) {
    this.#figure = figure;
    this.#lines = lines;
    this.#format = format;
    this.#least = least;
    this.#cursor = cursor;
    const legend = el("span", { class: "legend" });
    for (const line of lines) {
      const value = el("span", { class: "legend-value" });
      const label = el("span", {}, line.label);
      this.#values.set(line.field, value);
      this.#labels.push(label);
      legend.append(legendItem(line.colour, label, " ", value));
    }
    this.#canvas = el("canvas", { role: "img", tabindex: "0" });
    this.#tip = el("div", { class: "tip", role: "status", hidden: "" });
    const name = el("span", { class: "plot-title" }, title);
    figure.append(el("figcaption", {}, name, legend), el("div", { class: "plot-area" }, this.#canvas, this.#tip));
    cursor.add(this);
    this.title = title;
    this.#canvas.addEventListener("pointermove", (event) => cursor.move(this.#moment(event)));
    this.#canvas.addEventListener("pointerdown", (event) => cursor.move(this.#moment(event)));
    this.#canvas.addEventListener("pointerleave", () => cursor.move(null));
    this.#canvas.addEventListener("blur", () => cursor.move(null));
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.paint()).observe(this.#canvas.parentElement);
  }

  /** Rename the lines. */
  label(names) {
    names.forEach((name, i) => {
      this.#lines[i].label = name;
      setText(this.#labels[i], name);
    });
  }

  /** `data`: from History.since; `from`, `to`: ms; `name`: the name of the series; `events`: the events to mark. */
  show(data, from, to, name, events) {
    this.#view = { data, from, to, name, events };
    const last = data.times.length - 1;
    for (const [field, node] of this.#values) setText(node, last < 0 ? "–" : this.#formatted(data[field][last]));
    const marked = events.length ? `, with ${plural(events.length, "event")}` : "";
    setAttribute(this.#canvas, "aria-label", `${this.title} of ${name}${marked}. The arrow keys read it out.`);
    this.paint();
  }

  paint() {
    const width = this.#canvas.parentElement.clientWidth;
    if (this.#view === null || width === 0 || document.hidden) return; // the next status repaints it
    const pen = prepared(this.#canvas, width, HEIGHT);
    pen.font = `11px ${getComputedStyle(this.#figure).fontFamily}`;
    const scale = this.#scale(pen);
    const box = { left: scale.room, right: width - 6, top: TOP, bottom: HEIGHT - BOTTOM };
    this.#box = box;
    const y = (value) => box.bottom - (value / scale.top) * (box.bottom - box.top);
    this.#paintGrid(pen, box, scale, y);
    const { from, to } = this.#view;
    const x = (at) => box.left + ((at - from) / (to - from)) * (box.right - box.left);
    pen.save();
    pen.beginPath();
    pen.rect(box.left, 0, box.right - box.left + 6, HEIGHT);
    pen.clip();
    for (const event of this.#view.events.slice(-MARKS)) this.#paintMark(pen, event, x(event.time), box);
    // The first line is drawn last, on top.
    for (const line of [...this.#lines].reverse()) this.#paintLine(pen, line, x, y, box.bottom);
    pen.restore();
    this.#paintCursor(pen, box, x, y);
  }

  #scale(pen) {
    let top = this.#least;
    for (const { field } of this.#lines) for (const value of this.#view.data[field]) if (value > top) top = value;
    const step = niceStep(top / 4);
    const ticks = [];
    for (let value = 0; value < top + step * 0.999; value += step) ticks.push(value);
    // `2.00 Mbit/s` is `2 Mbit/s` on an axis.
    const short = (value) => this.#format(value).replace(/(\.\d*?)0+ /, "$1 ").replace(". ", " ");
    const labels = ticks.map((value) => (value === 0 ? "0" : short(value)));
    const room = Math.ceil(Math.max(56, ...labels.map((label) => pen.measureText(label).width))) + 10;
    return { top: ticks.at(-1), ticks, labels, room };
  }

  #paintGrid(pen, box, scale, y) {
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    scale.ticks.forEach((value, i) => {
      const at = Math.round(y(value)) + 0.5;
      pen.strokeStyle = colour(i === 0 ? "--axis" : "--grid");
      pen.beginPath();
      pen.moveTo(box.left, at);
      pen.lineTo(box.right, at);
      pen.stroke();
      pen.fillStyle = colour("--muted");
      pen.fillText(scale.labels[i], box.left - 8, at);
    });
    const { from, to } = this.#view;
    const perPixel = (to - from) / (box.right - box.left);
    const step = 1000 * (STEPS_S.find((seconds) => seconds * 1000 >= TICK_WIDTH * perPixel) ?? STEPS_S.at(-1));
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
      const x = box.left + (at - from) / perPixel;
      pen.strokeStyle = colour("--axis");
      pen.beginPath();
      pen.moveTo(Math.round(x) + 0.5, box.bottom);
      pen.lineTo(Math.round(x) + 0.5, box.bottom + 4);
      pen.stroke();
      const text = clock(at, step < 60_000);
      const half = pen.measureText(text).width / 2;
      if (x - half >= 0 && x + half <= box.right + 6) pen.fillText(text, x, HEIGHT - 5);
    }
  }

  #paintLine(pen, { field, colour: name, fill }, x, y, bottom) {
    const { times } = this.#view.data;
    const values = this.#view.data[field];
    pen.lineWidth = 1.5;
    pen.lineJoin = "round";
    pen.strokeStyle = pen.fillStyle = colour(name);
    const follows = (i) => !Number.isNaN(values[i]) && times[i] - times[i - 1] < GAP_MS;
    for (let start = 0; start < times.length; ) {
      let end = start + (Number.isNaN(values[start]) ? 0 : 1);
      while (end > start && end < times.length && follows(end)) end += 1;
      if (end > start) {
        pen.beginPath();
        for (let i = start; i < end; i += 1) pen.lineTo(x(times[i]), y(values[i]));
        if (end === start + 1) pen.lineTo(x(times[start]) + 1.5, y(values[start]));
        pen.stroke();
        if (fill) {
          pen.lineTo(x(times[end - 1]), bottom);
          pen.lineTo(x(times[start]), bottom);
          pen.globalAlpha = 0.1;
          pen.fill();
          pen.globalAlpha = 1;
        }
      }
      start = Math.max(end, start + 1);
    }
  }

  #paintMark(pen, { level }, at, box) {
    pen.fillStyle = colour(MARK_COLOURS[level] ?? "--bad");
    pen.fillRect(Math.round(at), box.top, 1, box.bottom - box.top);
    pen.fillRect(Math.round(at) - 2, box.bottom - 4, 5, 4);
  }

  #paintCursor(pen, box, x, y) {
    const i = this.#cursor.at === null ? -1 : this.#nearest(this.#cursor.at);
    this.#tip.hidden = i < 0;
    if (i < 0) return;
    const { data } = this.#view;
    const at = x(data.times[i]);
    pen.strokeStyle = colour("--muted");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(Math.round(at) + 0.5, box.top);
    pen.lineTo(Math.round(at) + 0.5, box.bottom);
    pen.stroke();
    const rows = [el("strong", {}, clock(data.times[i]))];
    for (const { field, label, colour: name } of this.#lines) {
      const value = data[field][i];
      rows.push(legendItem(name, `${label} ${this.#formatted(value)}`));
      if (Number.isNaN(value)) continue;
      pen.fillStyle = colour(name);
      pen.beginPath();
      pen.arc(at, y(value), 3.5, 0, 2 * Math.PI);
      pen.fill();
    }
    this.#tip.replaceChildren(...rows);
    const room = this.#canvas.parentElement.clientWidth;
    const width = this.#tip.offsetWidth;
    const left = at + 12 + width > room ? at - 12 - width : at + 12;
    this.#tip.style.transform = `translate(${Math.max(0, Math.round(left))}px, ${TOP}px)`;
  }

  #formatted(value) {
    return Number.isNaN(value) ? "–" : this.#format(value);
  }

  #moment(event) {
    if (this.#view === null || this.#box === null) return null;
    const { from, to } = this.#view;
    const { left, right } = this.#box;
    return from + ((event.offsetX - left) / (right - left)) * (to - from);
  }

  #nearest(at) {
    const { times } = this.#view.data;
    let best = times.length - 1;
    for (let i = best; i >= 0; i -= 1) if (Math.abs(times[i] - at) < Math.abs(times[best] - at)) best = i;
    return best;
  }

  #key(event) {
    if (this.#view === null || this.#view.data.times.length === 0) return;
    const { times } = this.#view.data;
    const last = times.length - 1;
    const now = this.#cursor.at === null ? last : this.#nearest(this.#cursor.at);
    const leap = event.shiftKey ? 10 : 1;
    const to = { ArrowLeft: now - leap, ArrowRight: now + leap, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.#cursor.move(null);
    if (to === undefined) return;
    event.preventDefault();
    this.#cursor.move(times[Math.min(Math.max(to, 0), last)]);
  }
}

const SPARK = { width: 110, height: 28 }; // as in panel.css; measuring the page would cost a layout for each row
export const sparksShown = matchMedia("(min-width: 1181px)"); // as in panel.css

/** Both directions as a small plot, for a row of the table. */
export function spark(canvas, data, from, to) {
  if (!sparksShown.matches || document.hidden) return;
  const { width, height } = SPARK;
  const pen = prepared(canvas, width, height);
  let top = 1000;
  for (const field of ["rx", "tx"]) for (const value of data[field]) if (value > top) top = value;
  for (const field of ["tx", "rx"]) {
    pen.strokeStyle = colour(`--${field}`);
    pen.lineWidth = 1.25;
    pen.beginPath();
    let drawing = false;
    data.times.forEach((at, i) => {
      const value = data[field][i];
      if (Number.isNaN(value)) {
        drawing = false;
        return;
      }
      const x = ((at - from) / (to - from)) * width;
      const y = height - 1.5 - (value / top) * (height - 3);
      if (drawing) pen.lineTo(x, y);
      else pen.moveTo(x, y);
      drawing = true;
    });
    pen.stroke();
  }
}
