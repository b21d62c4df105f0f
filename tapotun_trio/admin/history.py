"""Keeps throughput and round trips of the last 15 minutes, so that a page that was just opened has plots at once.

Every five seconds the numbers of the status are sampled, so there is no work per packet. Each interface has a ring of
samples of fixed size. Each peer has one, too, if there are few peers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from math import isnan, nan
from time import time
from typing import Final, NamedTuple, TypeAlias

import msgspec
import trio

from ..cooperative import Steps, run_cooperatively
from ..lifecycle.registry import Registry
from ..log import Faults, process_logger
from ..peer.boottime import BootTime, boottime
from ..peer.status import Peer

STEP_S: Final = 5.0  # a rate is the average over this time, so a shorter step would add nothing
KEPT: Final = 181  # samples in a ring; 180 of them, 15 minutes, are shown
# If there are more peers than this, none has its own series. A series takes 4 KB in memory and in the JSON document.
MAX_PEERS: Final = 100
PEERS_PER_STEP: Final = 200  # takes about a millisecond

# Names of an interface and a peer. None: the sum of all.
Key: TypeAlias = tuple[str | None, str | None]


class Sample(NamedTuple):
    """Rates in bit/s and round-trip times in ms. A time is NaN while it is not known.

    For one peer, ``rtt`` is the time of the last ping and ``high`` the smoothed time. For several peers, they are the
    median and the maximum of the last pings.
    """

    rx: float
    tx: float
    rtt: float = nan
    high: float = nan


class History:
    """Rings of samples: one for everything, one for each interface, and at most MAX_PEERS for peers at a time."""

    def __init__(self) -> None:
        self._times = array("d", [nan]) * KEPT
        self._series: dict[Key, _Series] = {}
        self._count = 0  # samples taken so far

    def add(self, at: BootTime, samples: dict[Key, Sample]) -> None:
        """Add the samples of one moment. A series without a sample gets a gap, and is dropped after KEPT gaps."""
        slot = self._count % KEPT
        self._times[slot] = at
        self._count += 1
        for key in samples.keys() - self._series.keys():
            self._series[key] = _Series()
        for key, series in list(self._series.items()):
            sample = samples.get(key)
            if sample is not None:
                series.newest = self._count
            elif self._count - series.newest >= KEPT:
                del self._series[key]
            for ring, value in zip(series.rings, sample or _GAP, strict=True):
                ring[slot] = value

    def document(self) -> Iterator[bytes]:
        """Yield the JSON document of docs/admin.md in parts. Each part takes well under a millisecond."""
        # Without the oldest sample, because a new sample could overwrite it between two parts.
        slots = [number % KEPT for number in range(max(0, self._count - KEPT + 1), self._count)]
        since_boot_s = time() - boottime()
        times = [int((self._times[slot] + since_boot_s) * 1e3) for slot in slots]
        yield b'{"step_s":%s,"times_ms":%s,"series":[' % (msgspec.json.encode(STEP_S), msgspec.json.encode(times))
        for number, ((interface, peer), series) in enumerate(list(self._series.items())):
            lists = [[_rounded(ring[slot]) for slot in slots] for ring in series.rings]
            found = dict(zip(("rx_bits_per_s", "tx_bits_per_s", "rtt_ms", "rtt_high_ms"), lists, strict=True))
            document = msgspec.json.encode({"interface": interface, "peer": peer, **found})
            yield b"," + document if number else document
        yield b"]}"


class _Series:
    __slots__ = ("newest", "rings")

    def __init__(self) -> None:
        self.rings = tuple(array("f", [nan]) * KEPT for _ in Sample._fields)
        self.newest = 0  # the value of History._count when this series got its newest sample


_GAP: Final = Sample(nan, nan)


async def keep_history(history: History, registry: Registry) -> None:
    """Take samples until cancelled. An internal error is logged, and only that sample is missing."""
    faults = Faults()
    while True:
        try:
            history.add(boottime(), await run_cooperatively(sample_in_steps(registry)))
        except Exception as exc:  # noqa: BLE001 - logged with its traceback
            faults.log(process_logger(), trio.current_time(), "admin: history sample left out", exc)
        await trio.sleep(STEP_S)


def sample_in_steps(registry: Registry) -> Steps[dict[Key, Sample]]:
    """Take one sample for everything, one for each interface, and one for each peer if at most MAX_PEERS exist."""
    every, found, peers = _Sum(), dict[Key, Sample](), dict[Key, Sample]()
    for record in registry:
        if record.tunnel is None:
            continue  # the interface has failed or is starting
        whole, name = _Sum(), record.config.name
        for number, (peer_name, peer) in enumerate(record.tunnel.peers(), 1):
            sample = _sample(peer)
            whole.add(sample)
            every.add(sample)
            if len(peers) <= MAX_PEERS:
                peers[name, peer_name] = sample
            if number % PEERS_PER_STEP == 0:
                yield
        found[name, None] = whole.sample()
        yield
    found[None, None] = every.sample()
    return found if len(peers) > MAX_PEERS else found | peers


def _sample(peer: Peer) -> Sample:
    rtt = peer.rtt
    if peer.state != "connected" or rtt.last_s is None or rtt.smoothed_s is None:
        return Sample(*peer.peer_info.rates)
    return Sample(*peer.peer_info.rates, rtt.last_s * 1e3, rtt.smoothed_s * 1e3)


class _Sum:
    """Combines the samples of several peers into one."""

    def __init__(self) -> None:
        self._rx = self._tx = 0.0
        self._trips: list[float] = []

    def add(self, sample: Sample) -> None:
        self._rx += sample.rx
        self._tx += sample.tx
        if not isnan(sample.rtt):
            self._trips.append(sample.rtt)

    def sample(self) -> Sample:
        if not self._trips:
            return Sample(self._rx, self._tx)
        trips = sorted(self._trips)
        return Sample(self._rx, self._tx, trips[(len(trips) - 1) // 2], trips[-1])


def _rounded(value: float) -> float | None:
    return None if isnan(value) else round(value, 3)
