"""The difference between two configs, and the smallest change that each interface needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal, TypeAlias

from ..macs import mac_text
from .model import (
    AdminConfig,
    AllowedClient,
    Bridge,
    Config,
    InterfaceConfig,
    LogConfig,
    Mark,
    ServerConfig,
    UpdateConfig,
)

# live: applied to the running interface, whose sessions continue. restart: the interface is stopped and started again.
ChangeKind: TypeAlias = Literal["added", "removed", "restart", "live"]

# Fields of a server that cannot change while it runs, and their names in the file.
_FIXED: Final = {
    "listen": "listen, port",
    "path": "path",
    "ingress": "trusted_proxies, proxy_protocol, listen_mode",
    "device": "device",
    "bridge": "bridge",
    "mac": "mac",
}
# Other fields that have another name in the file.
_NAMES: Final = {
    "nets": "net",
    "addresses": "ip",
    "keepalive_s": "keepalive",
    "every_s": "every",
    "spread_s": "spread",
    "login": "the login (user, password_file, server)",
}
# Fields whose values are shown. A token is never shown, nor a field that may hold a login or a token, such as a URL.
_SHOWN: Final = frozenset(
    {
        "name",
        "nets",
        "mtu",
        "ips",
        "routes",
        "push_routes",
        "push_dns",
        "mark",
        "install_routes",
        "source_check",
        "peers",
        "keepalive_s",
        "path",
        "addresses",
        "sources",
        "rotate_s",
        "transport",
        "auth_header",
        "transport_mark",
        "device",
        "bridge",
        "mac",
        "macs",
        "isolate",
        "arp_guard",
        "bpdu",
        "storm_limit",
    }
)
_LISTED: Final = 4  # elements that are shown of a changed list
# Changes that free names, addresses and ports come first, changes that need them last.
_ORDER: Final[tuple[ChangeKind, ...]] = ("removed", "restart", "live", "added")


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one interface.

    ``before`` is None for an added interface, ``after`` for a removed one. ``lines`` describe the change for people;
    they never contain a token.
    """

    kind: ChangeKind
    before: InterfaceConfig | None
    after: InterfaceConfig | None
    lines: tuple[str, ...]

    @property
    def name(self) -> str:
        """The interface's name."""
        return (self.before or self.after).name  # type: ignore[union-attr]

    @property
    def inverse(self) -> Change:
        """The change that undoes this one."""
        kind: dict[ChangeKind, ChangeKind] = {"added": "removed", "removed": "added"}
        return Change(kind.get(self.kind, self.kind), self.after, self.before, self.lines)


def changes(before: Iterable[InterfaceConfig], after: Iterable[InterfaceConfig]) -> list[Change]:
    """The changes, in the order in which to make them. An interface is identified by its name."""
    old, new = ({config.name: config for config in configs} for configs in (before, after))
    found: list[Change] = []
    for name, config in old.items():
        if name not in new:
            found.append(Change("removed", config, None, (f"{name}: removed",)))
    for name, config in new.items():
        if name not in old:
            found.append(Change("added", None, config, (f"{name}: added",)))
        elif config != old[name]:
            found.append(_change(old[name], config))
    return sorted(found, key=lambda change: _ORDER.index(change.kind))


def process_lines(before: Config, after: Config) -> list[str]:
    """The differences outside the interfaces, for people. The lines never contain a token."""
    lines: list[str] = []
    if before.user != after.user:
        lines.append(f"user: needs a restart ({_value(before.user)} -> {_value(after.user)})")
    if before.plane != after.plane:
        lines.append(f"plane: needs a restart ({_value(before.plane)} -> {_value(after.plane)})")
    if before.log != after.log:
        lines.append(f"log: {', '.join(_different(before.log, after.log))} changed")
    if before.admin is None or after.admin is None:
        if before.admin != after.admin:
            lines.append(f"admin: {'added' if before.admin is None else 'removed'}")
    elif before.admin != after.admin:
        lines.append(f"admin: {', '.join(_different(before.admin, after.admin))} changed")
    if before.update is None or after.update is None:
        if before.update != after.update:
            lines.append(f"update: {'added' if before.update is None else 'removed'}")
    elif before.update != after.update:
        different = dict.fromkeys(
            "url" if name == "login" else name for name in _different(before.update, after.update)
        )
        lines.append(f"update: {_file_names(different)} changed")
    return lines


def _change(old: InterfaceConfig, new: InterfaceConfig) -> Change:
    """The change of an interface that both configs have."""
    if old.kind != new.kind:
        return Change("restart", old, new, (f"{new.name}: is a {new.kind} now, and starts again",))
    different = _different(old, new)
    reasons = _restart_reasons(new, different)
    if reasons:
        text = f"{new.name}: {_file_names(reasons)} changed, so it starts again{_values(old, new, reasons)}"
        return Change("restart", old, new, (text,))
    lines = [
        f"{new.name}: {_file_names([name])} changed{_values(old, new, [name])}"
        for name in different
        if name != "clients"
    ]
    if isinstance(old, ServerConfig) and isinstance(new, ServerConfig):
        lines += _client_lines(new.name, old.clients, new.clients)
    return Change("live", old, new, tuple(lines))


def _restart_reasons(config: InterfaceConfig, different: list[str]) -> list[str]:
    """The changed fields that make a restart necessary. A client interface can change only its ``mark`` while it
    runs."""
    if config.kind == "server":
        return [name for name in different if name in _FIXED]
    return [] if different == ["mark"] else different


def _client_lines(interface: str, old: Sequence[AllowedClient], new: Sequence[AllowedClient]) -> list[str]:
    before, after = ({client.name: client for client in clients} for clients in (old, new))
    # A client is identified by its token. A client without a name is called by its address, so its name changes with
    # the address.
    renamed = {client.token: client for name, client in before.items() if name not in after}
    lines: list[str] = []
    for name, client in after.items():
        earlier = before.get(name) or renamed.pop(client.token, None)
        if earlier is None:
            lines.append(f"{interface} {name}: added")
        elif client != earlier:
            different = _different(earlier, client)
            values = _values(earlier, client, different)
            lines.append(f"{interface} {earlier.name}: {_file_names(different)} changed{values}")
    lines = [*(f"{interface} {client.name}: removed" for client in renamed.values()), *lines]
    if not lines and old != new:
        return [f"{interface}: the order of its clients changed"]
    return lines


_Part: TypeAlias = InterfaceConfig | AllowedClient | AdminConfig | LogConfig | UpdateConfig


def _different(old: _Part, new: _Part) -> list[str]:
    """The names of the fields that differ. Both must be of the same class."""
    return [field.name for field in fields(old) if getattr(old, field.name) != getattr(new, field.name)]


def _file_names(names: Iterable[str]) -> str:
    """The fields' names as the file has them."""
    return ", ".join(_FIXED.get(name, _NAMES.get(name, name)) for name in names)


def _values(
    old: InterfaceConfig | AllowedClient, new: InterfaceConfig | AllowedClient, different: Sequence[str]
) -> str:
    """The old and new values in brackets; empty if none of them may be shown.

    One field: ``(1500 -> 1400)``. Several: ``(ip 10.10.0.2 -> 10.10.0.3, routes +10.60.0.0/24)``.
    """
    parts = [
        (f"{_file_names([name])} " if len(different) > 1 else "") + _difference(_shown(old, name), _shown(new, name))
        for name in different
        if name in _SHOWN
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _shown(part: InterfaceConfig | AllowedClient, name: str) -> object:
    """The value of a field; those that are one value or one for each family as a text, MAC addresses too."""
    value = getattr(part, name)
    if name in ("nets", "addresses"):
        return " and ".join(map(str, value)) or None
    return tuple(map(mac_text, value)) if name == "macs" else value


def _difference(old: object, new: object) -> str:
    """``OLD -> NEW``, or the elements that are added to and removed from a list."""
    if not isinstance(old, tuple) or not isinstance(new, tuple):
        return f"{_value(old)} -> {_value(new)}"
    before, after = set(old), set(new)
    parts = [f"+{element}" for element in new if element not in before]
    parts += [f"-{element}" for element in old if element not in after]
    if len(parts) > _LISTED:
        parts[_LISTED:] = [f"and {len(parts) - _LISTED} more"]
    return " ".join(parts) or "in another order"


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mark):
        return f"{value} in table {value.table}"
    if isinstance(value, bytes):
        return mac_text(value)
    if isinstance(value, Bridge):
        flags = [flag for flag in ("create", "isolated", "bpdu_guard") if getattr(value, flag)]
        flags += [] if value.learning else ["no learning"]
        return f"{value.name} ({', '.join(flags)})" if flags else value.name
    return str(value)
