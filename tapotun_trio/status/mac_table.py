"""The MAC addresses behind TAP interfaces as text for people: `tapotun status --macs`. Uses no clock.

Untrusted input: names from other processes are reduced to one line, and cut to the space that they have.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..text import one_line
from .duration import span
from .macs import MacStatus, MacTableStatus
from .render import WIDTH, columns, fit

_MAC_COLUMNS: Final = 17
_AGE_COLUMNS: Final = 20  # at least; as many as the longest one needs
THIS_SIDE: Final = "(the server's side)"


def render_macs(tables: Iterable[MacTableStatus], *, width: int = WIDTH) -> str:
    """A block for each interface, a line for each address: those of the server's side first, then by client."""
    lines: list[str] = []
    for table in tables:
        age_columns = max((len(_age(one)) for one in table.macs), default=0)
        room = max(width - 2 - _MAC_COLUMNS - 2 - 2 - max(age_columns, _AGE_COLUMNS), 10)
        if lines:
            lines.append("")
        noun = "MAC address" if table.total == 1 else "MAC addresses"
        lines.append(fit(f"interface: {one_line(table.interface)}, {table.total} {noun}", width))
        for one in sorted(table.macs, key=lambda one: (one.client is not None, one.client or "", one.mac)):
            name = fit(THIS_SIDE if one.client is None else one_line(one.client), room)
            padded = name + " " * (room - columns(name))
            line = f"  {fit(one_line(one.mac), _MAC_COLUMNS):<{_MAC_COLUMNS}}  {padded}  {_age(one)}"
            lines.append(fit(line.rstrip(), width))
        if table.total > len(table.macs):
            lines.append(f"  and {table.total - len(table.macs)} more")
    return "".join(f"{line}\n" for line in lines)


def _age(one: MacStatus) -> str:
    # Those of the config are each a client's. So this is the address of the server's TAP interface, or of its bridge.
    words = ["this server" if one.client is None else "pinned"] if one.pinned else []
    if one.age_s is not None:
        words.append(f"{span(one.age_s)} ago")
    return ", ".join(words)
