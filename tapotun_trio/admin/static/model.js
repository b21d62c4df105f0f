// Computes lists, sums and the numbers of the plots from a status document (docs/status.md). Does not use the DOM.

import { total } from "./format.js";

export const ALL = "all";

/** Keys of the series of an interface and of a peer. A name has no control character, so keys never collide. */
export const ofInterface = (name) => `interface\n${name}`;
export const ofPeer = (interfaceName, name) => `peer\n${interfaceName}\n${name}`;

const SILENT_MS = 60_000; // more than any keepalive

/** Every peer with its interface. `now`: ms of the daemon's clock. */
export function peersOf(status, now) {
  return status.interfaces.flatMap((iface) =>
    iface.peers.map((peer) => {
      const trouble = troubleOf(peer, now);
      return {
        key: ofPeer(iface.name, peer.name),
        interfaceName: iface.name,
        kind: iface.kind,
        peer,
        trouble,
        rank: rankOf(peer, trouble),
        rtt: peer.state === "connected" ? peer.rtt.last_ms : null,
        dropped: total(peer.drops),
      };
    }),
  );
}

/** What is wrong with a peer that is connected; null: nothing. */
function troubleOf(peer, now) {
  if (peer.state !== "connected") return null;
  if (peer.path_problem !== null) return peer.path_problem;
  const silent = peer.last_frame_at !== null && now - Date.parse(peer.last_frame_at) > SILENT_MS;
  return silent ? "nothing arrives from it" : null;
}

/** The sort key of a peer: peers with trouble come first, peers that have never connected last. */
function rankOf(peer, trouble) {
  if (peer.state === "connected") return trouble === null ? 4 : 2;
  if (peer.state === "offline") return peer.last_seen_at === null ? 5 : 3;
  return peer.state === "replaced" ? 0 : 1;
}

/** The sums over some peers, as `peersOf` returns them. */
export function summed(peers) {
  const sum = { rx: 0, tx: 0, rxBytes: 0, txBytes: 0, dropped: 0, rtt: null, high: null };
  sum.count = peers.length;
  sum.connected = peers.filter(({ peer }) => peer.state === "connected").length;
  const trips = [];
  for (const { peer, rtt, dropped } of peers) {
    sum.rx += peer.rates.rx_bits_per_s;
    sum.tx += peer.rates.tx_bits_per_s;
    sum.rxBytes += peer.rx_bytes;
    sum.txBytes += peer.tx_bytes;
    sum.dropped += dropped;
    if (rtt !== null) trips.push(rtt);
  }
  if (trips.length) {
    trips.sort((a, b) => a - b);
    sum.rtt = trips[Math.floor((trips.length - 1) / 2)];
    sum.high = trips.at(-1);
  }
  return sum;
}

/** Samples for History.push: the total, each interface, each peer. A peer's `high` is its smoothed round trip. */
export function samplesOf(status, peers) {
  const samples = new Map([[ALL, summed(peers)]]);
  for (const iface of status.interfaces) {
    samples.set(ofInterface(iface.name), summed(peers.filter((one) => one.interfaceName === iface.name)));
  }
  for (const { key, peer, rtt } of peers) {
    samples.set(key, {
      rx: peer.rates.rx_bits_per_s,
      tx: peer.rates.tx_bits_per_s,
      rtt,
      high: rtt === null ? null : peer.rtt.smoothed_ms,
    });
  }
  return samples;
}

/** The daemon's history (docs/admin.md) as [ms, samples] for History.push, oldest first. */
export function pastSamples({ times_ms, series }) {
  const keyOf = ({ interface: name, peer }) => {
    if (name === null) return ALL;
    return peer === null ? ofInterface(name) : ofPeer(name, peer);
  };
  const lists = series.map((one) => [keyOf(one), one]);
  return times_ms.map((at, i) => {
    const sampleOf = (one) => ({
      rx: one.rx_bits_per_s[i],
      tx: one.tx_bits_per_s[i],
      rtt: one.rtt_ms[i],
      high: one.rtt_high_ms[i],
    });
    return [at, new Map(lists.map(([key, one]) => [key, sampleOf(one)]))];
  });
}

/** Counts by reason, and where: Map of reason and {number, where: Map of place and number}. */
function gather(entries) {
  const found = new Map();
  for (const [place, counts] of entries) {
    for (const [reason, number] of Object.entries(counts)) {
      if (!number) continue;
      const entry = found.get(reason) ?? { number: 0, where: new Map() };
      entry.number += number;
      entry.where.set(place, (entry.where.get(place) ?? 0) + number);
      found.set(reason, entry);
    }
  }
  return found;
}

/** Counts by reason, added up. */
export function added(...counts) {
  const sum = {};
  for (const [reason, number] of counts.flatMap(Object.entries)) sum[reason] = (sum[reason] ?? 0) + number;
  return sum;
}

/** Dropped packets, refused requests and broken streams, each in the form of `gather`. */
export function troubles(status, peers) {
  const several = status.interfaces.length > 1;
  const placed = ({ interfaceName, peer }) => (several ? `${interfaceName} ${peer.name}` : peer.name);
  // Interfaces that share an address share its counts.
  const listeners = new Map(status.interfaces.flatMap((iface) => iface.listen.map((at) => [at.address, at.refusals])));
  return {
    packets: gather([
      ...status.interfaces.map((iface) => [`device ${iface.name}`, iface.device_drops]),
      ...peers.map((entry) => [placed(entry), entry.peer.drops]),
    ]),
    requests: gather([...status.interfaces.map((iface) => [iface.name, iface.refusals]), ...listeners]),
    streams: gather(peers.map((entry) => [placed(entry), entry.peer.stream_ends])),
  };
}

/** The total of one kind of trouble. */
export function sumOf(trouble) {
  return [...trouble.values()].reduce((sum, { number }) => sum + number, 0);
}

/** What an operator should know of updates, a line each: `update` of a status document, which may be null.
 * A line with a command ends with it, so that it can be copied. */
export function updateLines(update) {
  if (!update) return [];
  const { available: version, refused } = update;
  const lines = [];
  if (version !== null && refused.includes(version)) {
    lines.push(`Version ${version} is available. It did not start here, and is not installed again.`);
  } else if (version !== null) {
    const kept = update.downloaded_version === version ? `, and lies in ${update.downloaded}` : "";
    lines.push(`Version ${version} is available${kept}: ${update.command}`);
  }
  if (update.obstacle !== null) lines.push(`Updates are only reported: ${update.obstacle}`);
  if (update.error !== null) lines.push(`The last check for updates failed: ${update.error}`);
  return lines;
}

const RECENT_MS = 60_000;

/** The growth of counters in the last minute. */
export class Recently {
  #at = null; // of the last call
  #last = new Map(); // name to number at that time
  #steps = []; // [at, Map of name to growth] within the last minute, oldest first

  /**
   * Record the counters, and return how much each has grown. A counter that fell counts as no growth: it restarted with
   * its interface or daemon, or is a sum that a peer has left.
   */
  growth(at, counters) {
    const passed = this.#at === null ? 0 : at - this.#at;
    if (passed < 0 || passed > RECENT_MS) this.#steps = []; // the clock was set back, or the time is unknown
    else if (this.#at !== null) this.#steps.push([at, this.#grown(counters)]);
    this.#at = at;
    this.#last = counters;
    while (this.#steps.length && this.#steps[0][0] <= at - RECENT_MS) this.#steps.shift();
    const sums = new Map([...counters.keys()].map((name) => [name, 0]));
    for (const [, grown] of this.#steps) {
      for (const [name, number] of grown) if (sums.has(name)) sums.set(name, sums.get(name) + number);
    }
    return sums;
  }

  #grown(counters) {
    const found = new Map();
    for (const [name, number] of counters) {
      const grown = number - (this.#last.get(name) ?? 0);
      if (grown > 0) found.set(name, grown);
    }
    return found;
  }
}
