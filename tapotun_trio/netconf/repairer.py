"""Notices what other programs remove from an interface, puts it back within limits, and names the likely program.

The reconciler calls `Repairer.look` after each change that the kernel reports, and when a repair is due. The repairer
compares the recorded items with the kernel's. Our own changes are recorded before they are made, so they cause no
repair.

Addresses, routes, rules, host routes, the place in a bridge and the MTU are put back, and so is the loose reverse path
filter that a rule needs. A link that was set down stays down until it is set up again, and a renamed link keeps its new
name, since a person may want either. A reload undoes both. If the interface was moved to another network namespace, a
new one is made here, as after a deletion. A bridge of another program that passes nothing on, because it is down or has
disabled its port, is only reported.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import trio

from ..errors import HostError, shortage_of
from ..host.interfaces import InterfaceChange
from ..host.items import (
    MAIN_TABLE,
    Address,
    BridgeAddress,
    BridgePort,
    ConnectedRoute,
    HostRoute,
    Item,
    ItemsRefused,
    LinkState,
    OwnBridge,
    Route,
    Rule,
)
from ..host.network_managers import Kind, Manager, remedy, suspects
from ..log import Log, flap_damped
from ..text import one_line, shorten
from .installed import InstalledItems
from .repair import RepairLimit

_NAMED: Final = 3  # items named in one log line
_REASON_CHARS: Final = 500
_DOWN: Final = "another program set this interface down: no packet passes until it is up again"
_PASSES_AGAIN: Final = "the bridge passes on again what comes through this interface"
_BLAME_S: Final = 2.0  # limit of the search for the program; it takes 0.1 s on a busy machine
UNKNOWN_CHANGE: Final = InterfaceChange()

_KINDS: Final[dict[type[Item], Kind]] = {
    Address: "address",
    BridgeAddress: "address",
    BridgePort: "link",
    OwnBridge: "link",
    ConnectedRoute: "route",
    Route: "route",
    HostRoute: "route",
    Rule: "rule",
}
_LOOKS: Final = trio.CapacityLimiter(1)  # threads that search for the program


class GoneError(HostError):
    """The interface was deleted, or moved to another network namespace."""


class Health:
    """Whether everything that an interface wants is in the kernel. It outlives restarts of the interface.

    Attributes:
        degraded: what is missing and why, in one phrase; None: nothing is missing.
        repairs: how often something was put back.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        """``on_change``: called when the interface becomes degraded, and when it has recovered."""
        self.degraded: str | None = None
        self.repairs = 0
        self._on_change = on_change

    def set_degraded(self, reason: str | None) -> None:
        changed = (reason is None) != (self.degraded is None)
        self.degraded = None if reason is None else one_line(shorten(reason, _REASON_CHARS))
        if changed:
            self._on_change()


@dataclass(frozen=True, slots=True)
class _Loss:
    """What is missing.

    Attributes:
        items: these items.
        mtu: the wrong MTU that the interface has; None: it is right.
        is_strict: strict reverse path filtering, which IPv4 has, was switched on, and there is a rule of IPv4.
    """

    items: Sequence[Item]
    mtu: int | None = None
    wanted_mtu: int | None = None
    is_strict: bool = False

    def __bool__(self) -> bool:
        return bool(self.items) or not self.is_items_only

    @property
    def is_items_only(self) -> bool:
        return self.mtu is None and not self.is_strict

    @property
    def kinds(self) -> set[Kind]:
        found: set[Kind] = {_KINDS[kind] for kind in {type(item) for item in self.items}}
        return found | ({"link"} if self.mtu is not None else set())

    def __str__(self) -> str:
        parts = [_text(item) for item in self.items[:_NAMED]]
        if len(self.items) > _NAMED:
            parts.append(f"{len(self.items) - _NAMED} more")
        if self.mtu is not None:
            parts.append(f"MTU {self.wanted_mtu} (it was set to {self.mtu})")
        if self.is_strict:
            parts.append("the loose reverse path filter (strict drops replies to marked packets)")
        return ", ".join(parts)


class Repairer:
    """Repairs one interface. All methods are for the reconciler's task only."""

    def __init__(
        self, name: str, installed: InstalledItems, health: Health, log: Log, reinstall: Callable[[], Awaitable[None]]
    ) -> None:
        """``reinstall``: decides again which host routes are needed, and adds them. May raise HostError."""
        self._name = name
        self._installed = installed
        self._health = health
        self._log = log
        self._reinstall = reinstall
        self._limit = RepairLimit()
        # Items that the kernel refused at the last try have a limit of their own, since they may stay refused for ever.
        self._refused: frozenset[Item] = frozenset()
        self._refused_limit = RepairLimit()
        self._lines, self._returned_lines = flap_damped(), flap_damped()
        self._down = False
        self._seen_name = name
        self._blocked_reason: str | None = None
        self._stuck = False  # whether a warning has said that something stays missing
        self._due = trio.Event()
        self._due_at = 0.0

    async def wait_due(self) -> None:
        """Wait until a postponed repair may be made. Cancel-safe."""
        await self._due.wait()
        await trio.sleep_until(self._due_at)
        self._due = trio.Event()

    async def look(self, change: InterfaceChange = UNKNOWN_CHANGE, *, forced: bool = False) -> list[str]:
        """Compare the recorded items with the kernel's, and put back what is missing if the limits allow it now.
        Returns what was put back.

        Args:
            forced: the operator asks for it. Then limits do not apply, and the interface is also set up and given its
                name back.

        Raises:
            HostError: the interface is gone from this network namespace; or, if ``forced``, an item could not be put
                back.
        """
        try:
            return await self._look(change, forced=forced)
        except GoneError:
            raise
        except HostError as exc:
            self._wait(f"cannot see what others have changed, or put it back: {exc}", self._limit)
            if forced:
                raise
            return []

    async def _look(self, change: InterfaceChange, *, forced: bool) -> list[str]:
        state = await self._installed.network.state(self._name)
        if state is None:
            what = "moved this interface to another network namespace" if change.moved else "deleted this interface"
            raise GoneError(f"another program {what}: it is made again here")
        done: list[str] = []
        if forced:
            self._limit.reset()
            self._refused_limit.reset()
            done += await self._set_up(state)
            state = await self._installed.network.state(self._name) or state
        toggled = change.toggled or self._down or bool(done)
        self._note_link(state)
        if not state.up:
            self._health.set_degraded("another program set it down")
            return done
        if toggled:
            await self._installed.restore("a reload" if done else "another program")
        loss = await self._loss(state)
        if loss:
            done += await self._repair(loss, change, forced=forced)
        else:
            self._settle()
        return done

    async def _loss(self, state: LinkState) -> _Loss:
        wanted = self._installed.mtu
        has_rule = any(isinstance(item, Rule) and item.version == 4 for item in self._installed.items)
        is_strict = state.is_strict and has_rule
        mtu = None if state.mtu in (0, wanted) else state.mtu
        return _Loss(await self._installed.absent(), mtu, wanted, is_strict)

    async def _repair(self, loss: _Loss, change: InterfaceChange, *, forced: bool) -> list[str]:
        now, senders = trio.current_time(), change.senders
        tried = self._refused.issuperset(loss.items) and loss.is_items_only
        limit = self._refused_limit if tried else self._limit
        returned = change.returned and loss.is_items_only and all(isinstance(item, Route) for item in loss.items)
        if not forced and not returned and limit.wait_s(now):
            rests = limit.rests(now)
            why = "another program takes it away again and again" if rests else "another program took it away"
            await self._stay_missing(loss, why, senders, limit, warn=rests)
            return []
        if not returned:
            limit.repaired(now)
        refusal: ItemsRefused | None = None
        try:
            try:
                await self._installed.put_back(loss.items, rules=loss.is_strict)
            except ItemsRefused as exc:
                refusal = exc
            if any(isinstance(item, HostRoute) for item in loss.items):
                await self._reinstall()
        except HostError as exc:
            await self._stay_missing(loss, str(exc), senders, limit, warn=True)
            if forced:
                raise
            return []
        self._refused = frozenset() if refusal is None else frozenset(refusal.refused)
        if refusal is None:
            if returned:
                return self._tell_returned(loss)
            return [await self._tell(loss, senders, told=forced or self._stuck)]
        left = _Loss(_still_missing(loss.items, refusal.refused))
        if back := replace(loss, items=[item for item in loss.items if item not in self._refused]):
            await self._tell(back, senders, told=forced, settled=False)
        await self._stay_missing(left, str(refusal), senders, self._refused_limit, warn=True)
        if forced:
            raise refusal
        return []

    async def _tell(self, loss: _Loss, senders: Collection[int], *, told: bool, settled: bool = True) -> str:
        """Log and count that ``loss`` was put back. ``told``: a warning is not needed; ``settled``: nothing else is
        missing."""
        self._health.repairs += 1
        if settled:
            self._settle()
        if all(isinstance(item, HostRoute) for item in loss.items) and loss.is_items_only:
            # No program is blamed: the kernel itself removes host routes with the device or the address that they
            # depend on.
            self._log.info("%s was gone: looked again for the way past this interface", loss)
        elif not told:
            text = f"another program took away {loss}: put back{await self._blame(loss, senders)}"
            self._lines.log(self._log, logging.WARNING, trio.current_time(), text)
        return f"put back {loss}"

    def _tell_returned(self, loss: _Loss) -> list[str]:
        """Log that ``loss`` was added again. It is no repair, because no other program did anything."""
        self._settle()
        text = f"another interface of this program had {loss} and is gone: added here again"
        self._returned_lines.log(self._log, logging.INFO, trio.current_time(), text)
        return [f"added {loss} again"]

    async def _set_up(self, state: LinkState) -> list[str]:
        done: list[str] = []
        if state.name != self._name:
            await self._installed.network.rename(self._name)
            done.append(f"renamed from {one_line(state.name)}")
            state = await self._installed.network.state(self._name) or state
        if not state.up:
            await self._installed.put_back([])
            done.append("set up again")
        return done

    def _note_link(self, state: LinkState) -> None:
        if not state.up and not self._down:
            self._log.warning(_DOWN)
        self._down = not state.up
        if state.name != self._seen_name:
            if state.name == self._name:
                self._log.info("this interface has its name again")
            else:
                self._log.warning("%s", _renamed(state.name, self._name))
        self._seen_name = state.name
        if state.blocked_reason != self._blocked_reason:
            level = logging.INFO if state.blocked_reason is None else logging.WARNING
            self._lines.log(self._log, level, trio.current_time(), state.blocked_reason or _PASSES_AGAIN)
        self._blocked_reason = state.blocked_reason

    def _settle(self) -> None:
        """Record that nothing is missing."""
        if self._stuck:
            self._stuck = False
            self._log.info("everything of this interface is in place again")
        renamed = None if self._seen_name == self._name else _renamed(self._seen_name, self._name)
        self._health.set_degraded(renamed or self._blocked_reason)

    async def _stay_missing(
        self, loss: _Loss, why: str, senders: Collection[int], limit: RepairLimit, *, warn: bool
    ) -> None:
        if warn and not self._stuck:
            self._stuck = True
            text = f"{loss} stays missing for now: {why}{await self._blame(loss, senders)}"
            self._lines.log(self._log, logging.WARNING, trio.current_time(), text)
        self._wait(f"missing: {loss}; {why}", limit)

    def _wait(self, reason: str, limit: RepairLimit) -> None:
        """Stay degraded until the limit allows another repair."""
        self._health.set_degraded(reason)
        now = trio.current_time()
        # If the kernel did not answer, no repair was made. It counts as one, so that it is tried again later.
        if not limit.wait_s(now):
            limit.repaired(now)
        self._due_at = now + limit.wait_s(now)
        self._due.set()

    async def _blame(self, loss: _Loss, senders: Iterable[int]) -> str:
        """Return the end of a sentence that names the likely program and the remedy; empty if neither is known."""
        kinds, found, certain = loss.kinds, list[Manager](), False
        try:
            with trio.move_on_after(_BLAME_S):
                found, certain = await trio.to_thread.run_sync(
                    suspects, tuple(senders), kinds, self._name, abandon_on_cancel=True, limiter=_LOOKS
                )
        except Exception as exc:
            if shortage_of(exc, "") is None:
                raise  # a shortage costs only the name of the program, not the repair
        verb = "did it" if certain else "runs here and does such things"
        hints = [f"{manager} {verb}: {remedy(manager, kinds, self._name)}" for manager in found]
        if loss.is_strict:  # no program leaves a trace
            hints.append("look for rp_filter in /etc/sysctl.conf, the files of /etc/sysctl.d, and firewall scripts")
        return "".join(f"; {hint}" for hint in hints)


def _still_missing(lost: Collection[Item], refused: Collection[Item]) -> list[Item]:
    """What is missing after a repair of ``lost`` in which these items were ``refused``.

    With the route of a mark's table its rule is added again, even if nobody took it. If that route is refused, the rule
    is not touched (`Network.add`): it is there as before.
    """
    routes = {(item.network.version, item.table) for item in refused if isinstance(item, Route)}
    return [
        item
        for item in refused
        if item in lost or not (isinstance(item, Rule) and (item.version, item.table) in routes)
    ]


def _renamed(now: str, wanted: str) -> str:
    now = one_line(now)
    return (
        f"another program renamed it to {now}: it works on, but programs and rules that name {wanted} do not find it; "
        f"`ip link set {now} name {wanted}`, or a reload, renames it back"
    )


def _text(item: Item) -> str:
    match item:
        case Address(interface):
            return f"address {interface}"
        case BridgeAddress(bridge, interface):
            return f"address {interface} of bridge {one_line(bridge)}"
        case OwnBridge(name):
            return f"bridge {one_line(name)}"
        case BridgePort(bridge):
            return f"the interface's place in bridge {one_line(bridge)}"
        case ConnectedRoute(interface):
            return f"route {interface.network}"
        case Route(network, table):
            return f"route {network}" + (f" in table {table}" if table != MAIN_TABLE else "")
        case Rule():
            return str(item)
        case HostRoute():
            return f"host route {item}"
