"""The table of MAC addresses behind a server's TAP interface. It is no part of the status, since it may be long.
docs/status.md documents every field, and a test compares the two."""

from __future__ import annotations

from msgspec import Struct


class MacStatus(Struct, frozen=True, kw_only=True, gc=False):
    """One MAC address of the switch of a server's TAP interface. ``client``: None: it is behind the server's interface.
    ``age_s``: since it was last looked up; None: never. ``pinned``: it is always there."""

    mac: str
    client: str | None = None
    age_s: float | None = None
    pinned: bool = False


class MacTableStatus(Struct, frozen=True, kw_only=True, gc=False):
    """The addresses of one interface. ``total``: how many there are; ``macs`` may have fewer."""

    interface: str
    total: int = 0
    macs: list[MacStatus] = []
