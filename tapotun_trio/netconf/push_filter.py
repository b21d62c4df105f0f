"""Filters a server's push: leaves out the networks that this machine must not route into the tunnel.

Asks the kernel for the attached networks, and logs each change. `left_out` has the rules, and decides.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import trio

from ..errors import HostError
from ..host.interfaces import Network
from ..host.items import AttachedNetwork, DesiredState, Item
from ..log import Log, flap_damped
from .left_out import LeftOut, describe_back, describe_left_out, leave_out, networks_to_compare

_LINES: Final = 5  # logged at a time; a server may push thousands of networks


class PushFilter:
    """The filter of one client interface.

    Attributes:
        left_out: the networks that the newest decision left out.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self.left_out: tuple[LeftOut, ...] = ()
        self._compared = networks_to_compare((), ())  # by the newest decision
        self._attached: list[AttachedNetwork] = []
        self._new_lines, self._back_lines, self._failure_lines = flap_damped(), flap_damped(), flap_damped()

    async def acceptable(self, network: Network, name: str, desired: DesiredState) -> tuple[Item, ...]:
        """Return the items of ``desired`` that interface ``name`` may have. Cancel-safe.

        If the kernel does not answer, its previous answer is used.
        """
        self._compared = networks_to_compare(desired.items, desired.pushed)
        try:
            self._attached = await network.attached(name, *self._compared)
        except HostError as exc:
            text = f"cannot find out to which networks this machine is attached: {exc}"
            self._failure_lines.log(self._log, logging.WARNING, trio.current_time(), text)
        items, left_out = leave_out(desired.items, desired.pushed, self._attached)
        before, self.left_out = self.left_out, left_out
        self._log_changes(before, left_out, desired)
        return items

    async def is_outdated(self, network: Network, name: str) -> bool:
        """Whether the attached networks have changed since the newest decision. Raises HostError."""
        return set(await network.attached(name, *self._compared)) != set(self._attached)

    def _log_changes(self, before: Sequence[LeftOut], now: Sequence[LeftOut], desired: DesiredState) -> None:
        keys_before, keys_now = {it.key for it in before}, {it.key for it in now}
        new = [describe_left_out(it) for it in now if it.key not in keys_before]
        self._log_lines(new, logging.WARNING)
        wanted = set(desired.items)
        back = [describe_back(it) for it in before if it.key not in keys_now and it.item in wanted]
        self._log_lines(back, logging.INFO)

    def _log_lines(self, lines: Sequence[str], level: int) -> None:
        limit = self._new_lines if level == logging.WARNING else self._back_lines
        for number, line in enumerate(lines[:_LINES], 1):
            more = len(lines) - _LINES if number == _LINES else 0
            limit.log(self._log, level, trio.current_time(), f"{line} (and {more} more)" if more > 0 else line)
