"""Whether this process does what its config asks for."""

from __future__ import annotations

from collections.abc import Iterable

from ..client.client import TunnelClient
from ..lifecycle.registry import Record
from ..lifecycle.snapshot import state_of
from ..text import one_line


def not_ready(records: Iterable[Record]) -> list[str]:
    """Why it is not ready, one line for each interface that is not up; nothing: it is."""
    found = list(records)
    if not found:
        return ["no interface runs yet"]
    return [_reason(record) for record in found if state_of(record) != "up"]


def _reason(record: Record) -> str:
    tunnel = record.tunnel
    why = record.last_error
    if isinstance(tunnel, TunnelClient):
        replaced = "another machine uses this client's token"
        why = replaced if tunnel.state == "replaced" else tunnel.failure_log.latest or why
    text = f"{record.config.name}: {state_of(record)}"
    return one_line(f"{text}: {why}" if why else text)
