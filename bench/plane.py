"""Which data path the daemons ran on, as they tell it themselves: everything about the plane in ``status --json``.

The bench imports nothing of the program and must run with versions that know no plane. So it shows whatever is called
`plane` in what the program says, and says so where there is nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from tests.harness import CommandError, Host

from .variants import Tapotun, installed

NOT_TOLD: Final = "this version tells nothing of a plane"
# A peer's packets that the plane has moved; beside them, all of the peer's.
_MOVED: Final = "plane_packets"
_ALL: Final = ("rx_packets", "tx_packets")


def told(status: str, version: str) -> str:
    """One line of what ``status --json`` and ``--version`` say of the plane. Raises CommandError for no JSON. Pure."""
    try:
        document = json.loads(status)
    except json.JSONDecodeError as exc:
        raise CommandError(f"`tapotun status --json` printed no JSON: {status[:200]!r}") from exc
    parts = list(dict.fromkeys(f"{name} {value}" for name, value in _facts(document)))  # each once, in their order
    moved, packets = _moved(document)
    if packets:
        parts.append(f"{moved / packets:.1%} of the packets")
    if not parts and "plane" in version.lower():
        parts = [" ".join(version.split())]
    return ", ".join(parts) or NOT_TOLD


def _facts(document: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Name and value of all that stands under a key with `plane` in its name, at any depth.

    The name begins with that key, so what several interfaces tell has the same name several times.
    """
    match document:
        case dict():
            for key, value in document.items():
                if key != _MOVED:
                    yield from _facts(value, (*path, key) if path or "plane" in key.lower() else ())
        case list():
            for value in document:
                yield from _facts(value, path)
        case None:
            return
        case float() if path:
            yield " ".join(path), f"{document:.4g}"
        case _ if path:
            yield " ".join(path), document


def _moved(document: Any) -> tuple[int, int]:
    """Packets that the plane has moved, and all packets, of all peers together."""
    match document:
        case dict():
            found = [_moved(value) for value in document.values()]
            if _MOVED in document and all(name in document for name in _ALL):
                found.append((document[_MOVED], sum(document[name] for name in _ALL)))
        case list():
            found = [_moved(value) for value in document]
        case _:
            found = []
    return sum(moved for moved, _ in found), sum(packets for _, packets in found)


def ask(variant: Tapotun) -> dict[str, str]:
    """`told` of both ends of a variant. Raises HarnessError."""
    return {end: _ask(host, variant) for end, host in (("client", variant.client), ("server", variant.server))}


def _ask(host: Host, variant: Tapotun) -> str:
    status = host.run([installed(), "status", "--json"], env=variant.env).stdout
    version = host.run([installed(), "--version"], env=variant.env).stdout
    return told(status, version)
