"""Keeps a client's own connections out of its tunnel: knows their remote addresses, and asks the kernel for the routes.

`transport_routes` decides and `reconciler` carries the decision out. Before that, `push_filter` leaves out the routes
that this machine must never have. The guard requests a new decision whenever the result may have changed: before a
connection is made to an address, when the server's parameters change, and when this machine's addresses, links or
routes change. Every CHECK_S it looks for a route of any program that leads the transport into the tunnel, and for
changes of the networks to which this machine is attached.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Final, TypeAlias

import trio

from ..errors import EndReason, HostError, PeerError
from ..families import IPAddress, IPInterface, IPNetwork
from ..host.interfaces import Network
from ..host.items import DesiredState, HostRoute, Item, NextHop
from ..host.net.sockets import Connection, local_address
from ..log import Log, RateLimitedLog, flap_damped
from .push_filter import PushFilter
from .transport_routes import Conflict, Decision, decide, describe, makes_local

CHECK_S: Final = 2.0
_LINES: Final = 5  # log lines about the conflicts of one decision
_UNKNOWN: Final = {
    version: NextHop(ip_network(everything), usable=False) for version, everything in ((4, "0.0.0.0/0"), (6, "::/0"))
}

Recheck: TypeAlias = Callable[[bool], Awaitable[None]]
"""Makes the reconciler decide again; with a false argument, only if a check finds a problem. Raises HostError."""


async def _nothing_to_recheck(_thorough: bool) -> None:
    """Do nothing, because without an interface no route is ours."""


class TransportGuard:
    """The guard of one client interface.

    The guard exists before the interface, since the first connection brings the interface's parameters. `rechecking`
    connects the guard to the interface's reconciler.

    Attributes:
        conflicts: the routes that would lead the transport into the tunnel, according to the newest decision.
        on_new_remotes: called when `remotes` gains addresses.
        push_filter: leaves out pushed networks for other reasons. It is asked before each decision about the transport.
    """

    def __init__(self, mark: int | None, log: Log) -> None:
        """``mark``: the fwmark of the transport's sockets."""
        self._mark = mark
        self._log = log
        self._recheck: Recheck = _nothing_to_recheck
        self.conflicts: tuple[Conflict, ...] = ()
        self.push_filter = PushFilter(log)
        self.on_new_remotes: Callable[[], None] = lambda: None
        self._trying: Counter[IPAddress] = Counter()
        self._attempts: set[Attempt] = set()  # that are in progress
        self._connections: list[Connection] = []
        self._last: frozenset[IPAddress] = frozenset()  # the addresses of the newest attempt
        self._tried: frozenset[str] = frozenset()  # the newest attempt's addresses of both families
        self._unresolved = False  # the newest attempt found no address
        self._is_blind = False  # the newest decision had neither a session nor an address
        self._decided_for: frozenset[IPAddress] = frozenset()
        self._only_inside: frozenset[IPAddress] = frozenset()  # that can be reached through the tunnel at most
        self._dirty = trio.Event()
        self._heard_s: float | None = None  # trio's clock; None: there never was a session
        self._withdraws = False
        self._reported: set[tuple[IPNetwork, IPAddress, str]] = set()
        self._rate_limited: defaultdict[str, RateLimitedLog] = defaultdict(flap_damped)

    # -- where the transport goes

    @property
    def addresses(self) -> frozenset[IPAddress]:
        """The addresses of the connections that are open or being made, and those of the newest attempt."""
        self._connections = [connection for connection in self._connections if connection.remote_address is not None]
        remotes = (_routed(connection.remote_address or "") for connection in self._connections)
        return frozenset(self._trying) | self._last | {remote for remote in remotes if remote is not None}

    @property
    def remotes(self) -> frozenset[str]:
        """As `addresses`, but with link-local addresses too, and without the addresses that the newest attempt has
        ruled out."""
        self._connections = [connection for connection in self._connections if connection.remote_address is not None]
        remotes = (connection.remote_address for connection in self._connections)
        return self._tried | {remote for remote in remotes if remote is not None}

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """Hold this while a connection is made."""
        attempt = Attempt(self)
        self._attempts.add(attempt)
        try:
            yield attempt
        finally:
            self._attempts.discard(attempt)
            self._trying.subtract(attempt.addresses)
            self._trying = +self._trying

    async def resolved(self, addresses: Sequence[IPAddress], remotes: Sequence[str]) -> None:
        """Prepare for a connection to one of ``remotes``; ``addresses`` are those among them that routes decide about.
        When this returns, no route of ours leads them into the tunnel."""
        self._trying.update(addresses)
        self._try(frozenset(remotes))
        self._last, self._unresolved = frozenset(addresses), False
        await self._look(thorough=True)

    async def remembered(self, addresses: Sequence[IPAddress], remotes: Sequence[str]) -> None:
        """As `resolved`, for addresses that the name had earlier and that are tried in addition."""
        self._trying.update(addresses)
        self._try(self._tried | frozenset(remotes))
        self._last |= frozenset(addresses)
        await self._look(thorough=True)

    def _try(self, remotes: frozenset[str]) -> None:
        before, self._tried = self.remotes, remotes
        if not remotes <= before:
            self.on_new_remotes()

    def unresolved(self) -> None:
        """The name does not resolve. Any of our routes may be the reason that the name server cannot be reached."""
        self._tried = frozenset()
        if not self._unresolved:
            self._unresolved = True
            self.mark_dirty()

    def opened(self, connection: Connection) -> None:
        """An attempt has made this connection. Its holder closes it."""
        self._connections.append(connection)
        remote = connection.remote_address
        if remote is not None:
            self._tried = frozenset({remote})
        address = _routed(remote or "")
        if address is not None:
            self._last = frozenset({address})

    def has_lost_an_address(self, local_addresses: frozenset[str]) -> bool:
        """Whether a connection that is open or being made has a local address that is not one of these."""
        sockets = (sock for attempt in self._attempts for sock in attempt.sockets)
        local = [connection.local_address for connection in self._connections] + [
            local_address(sock) for sock in sockets
        ]
        return any(each is not None and each not in local_addresses for each in local)

    def may_try(self, address: str) -> bool:
        """Whether a connection to this address, of those prepared for, would not go through the tunnel itself."""
        return _routed(address) not in self._only_inside

    # -- when to decide again

    @contextmanager
    def rechecking(self, recheck: Recheck) -> Iterator[None]:
        """Within the block the interface exists. The guard calls ``recheck`` when the interface's reconciler has to
        decide again."""
        self._recheck = recheck
        try:
            yield
        finally:
            self._recheck = _nothing_to_recheck
            self._only_inside = frozenset()

    async def run(self) -> None:
        """Request a new decision after each `mark_dirty`, and every CHECK_S if something is amiss; for ever."""
        while True:
            with trio.move_on_after(CHECK_S):
                await self._dirty.wait()
            thorough = self._dirty.is_set()
            self._dirty = trio.Event()
            await self._look(thorough=thorough)

    def mark_dirty(self) -> None:
        """This machine may now reach the transport's addresses by other routes than before."""
        self._dirty.set()

    def session_begins(self) -> None:
        """A session begins, so withdrawn routes are added again."""
        self._heard_s = trio.current_time()
        if self._withdraws:
            self._withdraws = False
            self.mark_dirty()

    def tick(self, now: float, *, connected: bool, heard: bool, silence_s: float) -> None:
        """To be called once a second.

        Args:
            now: trio's clock.
            connected: there is a session.
            heard: the server has sent something since the last call.
            silence_s: how long there may be no session before pushed routes are withdrawn.
        """
        if heard or self._heard_s is None:
            self._heard_s = now
        if not connected and not self._withdraws and now - self._heard_s >= silence_s:
            self._withdraws = True
            self.mark_dirty()

    async def _look(self, *, thorough: bool) -> None:
        try:
            await self._recheck(thorough)
        except HostError as exc:
            self._log_line("look", logging.WARNING, f"cannot keep the tunnel's own connections out of it now: {exc}")

    # -- for the reconciler

    async def is_amiss(self, network: Network, name: str) -> bool:
        """Whether the newest decision no longer holds for interface ``name``. Raises HostError."""
        addresses = self.addresses
        if addresses != self._decided_for:
            return True
        for address in addresses:
            if await network.leads_into(name, address, self._mark):
                return True
        return await self.push_filter.is_outdated(network, name)

    async def decide(
        self,
        network: Network,
        name: str,
        desired: DesiredState,
        made: Sequence[Item],
        refused: Collection[IPAddress] = (),
    ) -> Decision:
        """Which items of ``desired`` may be made for interface ``name``, and which host routes they need.

        Args:
            made: the items that the interface has now.
            refused: addresses for which the kernel has refused a host route.
        """
        items = await self.push_filter.acceptable(network, name, desired)
        hidden = [item for item in made if isinstance(item, HostRoute)]
        addresses = self.addresses
        next_hops: dict[IPAddress, NextHop | None] = {}
        for address in sorted(addresses, key=lambda each: (each.version, int(each))):
            next_hop = await self._next_hop(network, name, address, hidden)
            next_hops[address] = (
                replace(next_hop or _UNKNOWN[address.version], usable=False) if address in refused else next_hop
            )
        decision = decide(
            items,
            next_hops,
            self._mark,
            pushed=desired.pushed,
            withdraws=self._withdraws,
            withdraws_all=self._unresolved,
            made=made,
        )
        is_blind = self._withdraws and self._unresolved
        if is_blind and not self._is_blind and desired.pushed:
            text = "no session, and the server's name does not resolve: all pushed routes are withdrawn"
            self._log_line("blind", logging.WARNING, f"{text} until there is a session again")
        self._is_blind = is_blind
        self._decided_for = addresses
        # Without any other way the tunnel is dead, and what goes into it does not arrive. But a tunnel that works over
        # one family of the server's addresses would carry a connection to the other, and so itself.
        unreachable = frozenset(address for address, next_hop in next_hops.items() if next_hop is None)
        self._only_inside = unreachable if len(unreachable) < len(next_hops) else frozenset()
        self.conflicts = decision.conflicts
        self._log_conflicts(decision.conflicts)
        return decision

    async def _next_hop(
        self, network: Network, name: str, address: IPAddress, hidden: Sequence[HostRoute]
    ) -> NextHop | None:
        try:
            return await network.next_hop(name, address, self._mark, hidden)
        except HostError as exc:
            self._log_line("way", logging.WARNING, f"cannot find out how {address} is reached: {exc}")
            return _UNKNOWN[address.version]

    def refuse_own(self, interfaces: Sequence[IPInterface]) -> None:
        """Raise PeerError if one of these interface addresses makes an address of the transport a local one."""
        for interface in interfaces:
            for address in self.addresses:
                if makes_local(interface, address):
                    raise PeerError(
                        f"the server gives this interface the address {interface}, which would make {address} "
                        "unreachable, and the server with it; give the tunnel another network in the server's config",
                        reason=EndReason.OWN_ADDRESS,
                    )

    # -- the log

    def _log_conflicts(self, conflicts: Sequence[Conflict]) -> None:
        """Log the conflicts that the previous decision did not have, grouped by address and outcome."""
        groups: dict[tuple[IPAddress, str, bool], list[Conflict]] = {}
        present = set()
        for conflict in conflicts:
            gateway = conflict.next_hop.gateway if conflict.next_hop else ""
            key = conflict.network, conflict.address, f"{conflict.action} {gateway}"
            present.add(key)
            if key not in self._reported:
                group = conflict.address, conflict.action, conflict.item is None
                groups.setdefault(group, []).append(conflict)
        gone, self._reported = self._reported - present, present
        for members in list(groups.values())[:_LINES]:
            self._log_line(members[0].action, logging.WARNING, describe(members))
        if gone and not present:
            text = "no route covers the addresses of the tunnel's own connections any more"
            self._log_line("well", logging.INFO, text)

    def _log_line(self, kind: str, level: int, text: str) -> None:
        """``kind``: lines of one kind share a limit."""
        self._rate_limited[kind].log(self._log, level, trio.current_time(), text)


class Attempt:
    """One connection that is being made."""

    def __init__(self, guard: TransportGuard) -> None:
        self._guard = guard
        self.addresses: tuple[IPAddress, ...] = ()
        self.sockets: list[socket.socket] = []

    async def resolved(self, addresses: Sequence[str]) -> None:
        """As `TransportGuard.resolved`, with all addresses."""
        await self._guard.resolved(self._add(addresses), addresses)

    async def remembered(self, addresses: Sequence[str]) -> None:
        """As `resolved`, for addresses that are tried in addition."""
        await self._guard.remembered(self._add(addresses), addresses)

    def unresolved(self) -> None:
        """As `TransportGuard.unresolved`."""
        self._guard.unresolved()

    def may_try(self, address: str) -> bool:
        """As `Preparation.may_try`."""
        return self._guard.may_try(address)

    def connecting(self, sock: socket.socket) -> None:
        """As `Preparation.connecting`."""
        self.sockets.append(sock)

    def _add(self, addresses: Sequence[str]) -> list[IPAddress]:
        found = [address for address in map(_routed, addresses) if address is not None]
        self.addresses += tuple(found)
        return found


def _routed(text: str) -> IPAddress | None:
    """The address, if routes decide where its packets go. A link-local one of IPv6 says itself which link it is on."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return None if address.version == 6 and address.is_link_local else address
