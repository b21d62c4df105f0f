"""Keeps a client's own connections out of its tunnel: knows where they go, and asks how they get there.

`transport_routes` decides and `reconciler` makes it so. This asks again whenever the answer may have changed: before a
connection is made to an address, when the plan changes, when this machine's ways into the network do, and every
CHECK_S whether somebody's route leads the transport into the tunnel.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network
from typing import Final

import trio

from ..errors import EndReason, HostError, PeerError
from ..host.interfaces import Network
from ..host.items import DesiredState, HostRoute, Item, NextHop
from ..host.net.sockets import Connection
from ..log import Log, RateLimitedLog, flap_damped
from .transport_routes import Conflict, Decision, decide, describe, takes

CHECK_S: Final = 2.0
_LINES: Final = 5  # at a time
_UNKNOWN: Final = NextHop(IPv4Network("0.0.0.0/0"), usable=False)


class TransportGuard:
    """Of one client interface.

    Attributes:
        look: has the programmer decide anew; ``thorough`` or only if something is amiss. None: there is no interface.
        conflicts: what would capture the transport, as it was decided last.
    """

    def __init__(self, mark: int | None, log: Log) -> None:
        """``mark``: the transport's fwmark."""
        self._mark = mark
        self._log = log
        self.look: Callable[[bool], Awaitable[None]] | None = None
        self.conflicts: tuple[Conflict, ...] = ()
        self._trying: Counter[IPv4Address] = Counter()
        self._connections: list[Connection] = []
        self._last: frozenset[IPv4Address] = frozenset()  # of the newest attempt
        self._unresolved = False  # the newest attempt found no address
        self._blind = False  # at the last decision: neither a session nor an address
        self._decided_for: frozenset[IPv4Address] = frozenset()
        self._stirred = trio.Event()
        self._heard_s: float | None = None  # trio's clock; None: there never was a session
        self._withdraws = False
        self._told: set[tuple[IPv4Network, IPv4Address, str]] = set()
        self._rate_limited: defaultdict[str, RateLimitedLog] = defaultdict(flap_damped)

    # -- where the transport goes

    @property
    def addresses(self) -> frozenset[IPv4Address]:
        """Those of the connections that are open or being made; between two attempts those of the last one."""
        self._connections = [it for it in self._connections if it.remote_address is not None]
        there = (_ipv4(it.remote_address or "") for it in self._connections)
        return frozenset(self._trying) | self._last | {it for it in there if it is not None}

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """Around making a connection."""
        attempt = Attempt(self)
        try:
            yield attempt
        finally:
            self._trying.subtract(attempt.addresses)
            self._trying = +self._trying

    async def resolved(self, addresses: Sequence[IPv4Address]) -> None:
        """About to connect to these: nothing of ours stands in their way when this returns."""
        self._trying.update(addresses)
        self._last, self._unresolved = frozenset(addresses), False
        await self._look(thorough=True)

    def unresolved(self) -> None:
        """The name does not resolve. Any route may stand between us and who would know."""
        if not self._unresolved:
            self._unresolved = True
            self.stir()

    def opened(self, connection: Connection) -> None:
        """A connection that an attempt has made. Whoever has it closes it."""
        self._connections.append(connection)
        address = _ipv4(connection.remote_address or "")
        if address is not None:
            self._last = frozenset({address})

    # -- when to look again

    async def run(self) -> None:
        """Look whenever `stir` says so, and every CHECK_S whether there is need to; for ever."""
        while True:
            with trio.move_on_after(CHECK_S):
                await self._stirred.wait()
            thorough = self._stirred.is_set()
            self._stirred = trio.Event()
            await self._look(thorough=thorough)

    def stir(self) -> None:
        """The ways of this machine may have changed."""
        self._stirred.set()

    def session_begins(self) -> None:
        """What was withdrawn comes back."""
        self._heard_s = trio.current_time()
        if self._withdraws:
            self._withdraws = False
            self.stir()

    def tick(self, now: float, *, connected: bool, heard: bool, silence_s: float) -> None:
        """Once a second. ``connected``: there is a session; ``heard``: something came since the last time."""
        if heard or self._heard_s is None:
            self._heard_s = now
        if not connected and not self._withdraws and now - self._heard_s >= silence_s:
            self._withdraws = True
            self.stir()

    async def _look(self, *, thorough: bool) -> None:
        if self.look is None:
            return
        try:
            await self.look(thorough)
        except HostError as exc:
            self._tell("look", logging.WARNING, f"cannot keep the tunnel's own connections out of it now: {exc}")

    # -- for the programmer

    async def is_amiss(self, network: Network, name: str) -> bool:
        """Whether the last decision no longer holds. Raises HostError."""
        addresses = self.addresses
        if addresses != self._decided_for:
            return True
        for address in addresses:
            if await network.leads_into(name, address, self._mark):
                return True
        return False

    async def decide(
        self,
        network: Network,
        name: str,
        desired: DesiredState,
        made: Sequence[Item],
        refused: Collection[IPv4Address] = (),
    ) -> Decision:
        """What of the plan may stand. ``made``: what stands; ``refused``: addresses that cannot have a host route."""
        hidden = [item for item in made if isinstance(item, HostRoute)]
        addresses = self.addresses
        ways: dict[IPv4Address, NextHop | None] = {}
        for address in sorted(addresses):
            ways[address] = await self._way(network, name, address, hidden)
            if address in refused:
                ways[address] = replace(ways[address] or _UNKNOWN, usable=False)
        decision = decide(
            desired.items,
            ways,
            self._mark,
            pushed=desired.pushed,
            withdraws=self._withdraws,
            withdraws_all=self._unresolved,
            made=made,
        )
        blind = self._withdraws and self._unresolved
        if blind and not self._blind and desired.pushed:
            what = "no session, and the server's name does not resolve: all pushed routes are withdrawn"
            self._tell("blind", logging.WARNING, f"{what} until there is a session again")
        self._blind = blind
        self._decided_for = addresses
        self.conflicts = decision.conflicts
        self._tell_of(decision.conflicts)
        return decision

    async def _way(
        self, network: Network, name: str, address: IPv4Address, hidden: Sequence[HostRoute]
    ) -> NextHop | None:
        try:
            return await network.next_hop(name, address, self._mark, hidden)
        except HostError as exc:
            self._tell("way", logging.WARNING, f"cannot find out how {address} is reached: {exc}")
            return _UNKNOWN

    def refuse_own(self, interfaces: Sequence[IPv4Interface]) -> None:
        """Raise PeerError if an interface with these addresses takes one of the transport's for itself."""
        for interface in interfaces:
            for address in self.addresses:
                if takes(interface, address):
                    raise PeerError(
                        f"the server gives this interface the address {interface}, which takes away {address}, where "
                        "the server itself is reached; give the tunnel another net in the server's config",
                        reason=EndReason.OWN_ADDRESS,
                    )

    # -- telling

    def _tell_of(self, conflicts: Sequence[Conflict]) -> None:
        groups: dict[tuple[IPv4Address, str, bool], list[Conflict]] = {}
        present = set()
        for it in conflicts:
            key = it.network, it.address, f"{it.action} {it.way.gateway if it.way else ''}"
            present.add(key)
            if key not in self._told:
                groups.setdefault((it.address, it.action, it.item is None), []).append(it)
        gone, self._told = self._told - present, present
        for group in list(groups.values())[:_LINES]:
            self._tell(group[0].action, logging.WARNING, describe(group))
        if gone and not present:
            self._tell("well", logging.INFO, "nothing covers the addresses of the tunnel's own connections any more")

    def _tell(self, kind: str, level: int, text: str) -> None:
        self._rate_limited[kind].log(self._log, level, trio.current_time(), text)


class Attempt:
    """One connection that is being made."""

    def __init__(self, guard: TransportGuard) -> None:
        self._guard = guard
        self.addresses: tuple[IPv4Address, ...] = ()

    async def resolved(self, addresses: Sequence[str]) -> None:
        """As `TransportGuard.resolved`, with addresses of any family."""
        self.addresses = tuple(it for it in map(_ipv4, addresses) if it is not None)
        await self._guard.resolved(self.addresses)


def _ipv4(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text)
    except AddressValueError:
        return None
