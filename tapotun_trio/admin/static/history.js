// The data of the plots: a few numbers per second and series, for the last minutes. Does not use the DOM.

const LATE_MS = 2000; // a status may be half a second older than the daemon's history
const FIELDS = ["rx", "tx", "rtt", "high"];

/** A ring buffer of times, and one of numbers for each field of each series. NaN: unknown at that time. */
export class History {
  #capacity;
  #times;
  #series = new Map();
  #pushed = 0;

  constructor(capacity = 960) {
    this.#capacity = capacity;
    this.#times = new Float64Array(capacity);
  }

  /**
   * `at`: ms. If it is a little older than the newest sample, the sample is ignored. If it is much older, the clock
   * was set back, and the history restarts.
   * `samples`: Map of series to {rx, tx, rtt, high}. A series is dropped when the buffer has no sample of it.
   */
  push(at, samples) {
    if (this.end !== null && at <= this.end && at > this.end - LATE_MS) return;
    if (this.end !== null && at < this.end) {
      this.#pushed = 0;
      this.#series.clear();
    }
    const slot = this.#pushed % this.#capacity;
    this.#times[slot] = at;
    this.#pushed += 1;
    for (const [key, sample] of samples) {
      let series = this.#series.get(key);
      if (series === undefined) {
        series = { last: 0 };
        for (const field of FIELDS) series[field] = new Float32Array(this.#capacity).fill(NaN);
        this.#series.set(key, series);
      }
      series.last = this.#pushed;
      for (const field of FIELDS) series[field][slot] = sample[field] ?? NaN;
    }
    for (const [key, series] of this.#series) {
      if (series.last === this.#pushed) continue;
      for (const field of FIELDS) series[field][slot] = NaN;
      if (this.#pushed - series.last >= this.#capacity) this.#series.delete(key);
    }
  }

  /** Add those [at, samples] that are newer than the newest sample. `past`: oldest first. */
  fill(past) {
    for (const [at, samples] of past) if (this.end === null || at > this.end) this.push(at, samples);
  }

  /** The time of the newest sample, ms; null: there is none. */
  get end() {
    return this.#pushed === 0 ? null : this.#times[(this.#pushed - 1) % this.#capacity];
  }

  /** The samples since `from` (ms), oldest first: {times, rx, tx, rtt, high}, arrays of equal length. */
  since(key, from) {
    const series = this.#series.get(key);
    const found = { times: [] };
    for (const field of FIELDS) found[field] = [];
    const oldest = Math.max(0, this.#pushed - this.#capacity);
    let first = this.#pushed;
    while (first > oldest && this.#times[(first - 1) % this.#capacity] >= from) first -= 1;
    for (let at = first; at < this.#pushed; at += 1) {
      const slot = at % this.#capacity;
      found.times.push(this.#times[slot]);
      for (const field of FIELDS) found[field].push(series === undefined ? NaN : series[field][slot]);
    }
    return found;
  }
}
