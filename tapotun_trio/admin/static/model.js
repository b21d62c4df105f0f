// What the page makes of a status document (docs/status.md): flat lists, sums, and the numbers for the plots.
// Nothing here knows the DOM.

import { total } from "./format.js";

export const ALL = "all";

/** The series of an interface, and of a peer of it. A name holds no control character, so the two never meet. */
export const ofInterface = (name) => `interface\n${name}`;
export const ofPeer = (interfaceName, name) => `peer\n${interfaceName}\n${name}`;

/** Every peer with the interface that it belongs to. */
export function peersOf(status) {
  return status.interfaces.flatMap((it) =>
    it.peers.map((peer) => ({
      key: ofPeer(it.name, peer.name),
      interfaceName: it.name,
      kind: it.kind,
      peer,
      rtt: peer.state === "connected" ? peer.rtt.last_ms : null,
      dropped: total(peer.drops),
    })),
  );
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

/** For History.push: of everything, of each interface, of each peer. Of a peer `high` is the smoothed round trip. */
export function samplesOf(status, peers) {
  const samples = new Map([[ALL, summed(peers)]]);
  for (const it of status.interfaces) {
    samples.set(ofInterface(it.name), summed(peers.filter((one) => one.interfaceName === it.name)));
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

/** Packets that were dropped, requests that came to nothing, streams that broke: each as `gather` returns it. */
export function troubles(status, peers) {
  const several = status.interfaces.length > 1;
  const placed = ({ interfaceName, peer }) => (several ? `${interfaceName} ${peer.name}` : peer.name);
  // Interfaces that share an address share its counts.
  const listeners = new Map(status.interfaces.flatMap((it) => it.listen.map((at) => [at.address, at.refusals])));
  return {
    packets: gather([
      ...status.interfaces.map((it) => [`device ${it.name}`, it.device_drops]),
      ...peers.map((it) => [placed(it), it.peer.drops]),
    ]),
    requests: gather([...status.interfaces.map((it) => [it.name, it.refusals]), ...listeners]),
    streams: gather(peers.map((it) => [placed(it), it.peer.stream_ends])),
  };
}

/** Of one kind of trouble. */
export function sumOf(trouble) {
  return [...trouble.values()].reduce((sum, { number }) => sum + number, 0);
}

/** How counters were up to a minute ago. */
export class Recently {
  #kept = []; // [at, Map of name and number]

  /** Remember, and return how much each has grown since. A counter that fell began anew. */
  growth(at, counters) {
    if (this.#kept.length && at < this.#kept.at(-1)[0]) this.#kept = []; // the clock was set back
    this.#kept.push([at, counters]);
    while (this.#kept[0][0] < at - 60_000) this.#kept.shift();
    const before = this.#kept[0][1];
    if (this.#kept.length === 1) return new Map([...counters.keys()].map((name) => [name, 0]));
    const grown = ([name, number]) => [name, Math.max(0, number - (before.get(name) ?? 0))];
    return new Map([...counters].map(grown));
  }
}
