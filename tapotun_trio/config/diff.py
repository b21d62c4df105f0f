"""What is different between two configs, and how little has to be done about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal, TypeAlias

from .model import AdminConfig, AllowedClient, Config, InterfaceConfig, LogConfig, Mark, ServerConfig

# live: on the running interface, whose sessions go on. restart: the interface goes and comes.
ChangeKind: TypeAlias = Literal["added", "removed", "restart", "live"]

# What of a server cannot change while it runs, and what the file calls it.
_FIXED: Final = {"listen": "listen, port", "path": "path", "ingress": "trusted_proxies, proxy_protocol, listen_mode"}
# What else the file calls differently.
_NAMES: Final = {"keepalive_s": "keepalive"}
# What is told with its values. Not tokens, nor what may hold one: a URL, a proxy.
_TOLD: Final = frozenset(
    {
        "name",
        "net",
        "mtu",
        "ips",
        "routes",
        "push_routes",
        "push_dns",
        "mark",
        "install_routes",
        "source_check",
        "peers",
    }
    | {"keepalive_s", "path", "ip", "sources", "rotate_s", "transport", "auth_header", "transport_mark"}
)
_LISTED: Final = 4  # of what comes or goes in a list
# First what frees names, addresses and ports, last what needs them.
_ORDER: Final[tuple[ChangeKind, ...]] = ("removed", "restart", "live", "added")


@dataclass(frozen=True, slots=True)
class Change:
    """Of one interface. ``before`` and ``after``: None where it is not. ``lines``: for people; no token is in them."""

    kind: ChangeKind
    before: InterfaceConfig | None
    after: InterfaceConfig | None
    lines: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the interface."""
        return (self.before or self.after).name  # type: ignore[union-attr]

    @property
    def inverse(self) -> Change:
        """The way back."""
        kind: dict[ChangeKind, ChangeKind] = {"added": "removed", "removed": "added"}
        return Change(kind.get(self.kind, self.kind), self.after, self.before, self.lines)


def changes(before: Iterable[InterfaceConfig], after: Iterable[InterfaceConfig]) -> list[Change]:
    """In the order in which to make them. Interfaces are the same if they have the same name."""
    old, new = ({config.name: config for config in configs} for configs in (before, after))
    found = [Change("removed", it, None, (f"{it.name}: removed",)) for it in old.values() if it.name not in new]
    found += [_change(old[it.name], it) for it in new.values() if it.name in old and it != old[it.name]]
    found += [Change("added", None, it, (f"{it.name}: added",)) for it in new.values() if it.name not in old]
    return sorted(found, key=lambda change: _ORDER.index(change.kind))


def process_lines(before: Config, after: Config) -> list[str]:
    """What differs beside the interfaces, for people; no token is in it."""
    lines = [f"log: {', '.join(_different(before.log, after.log))} changed"] if before.log != after.log else []
    if before.admin is None or after.admin is None:
        if before.admin != after.admin:
            lines.append(f"admin: {'added' if before.admin is None else 'removed'}")
    elif before.admin != after.admin:
        lines.append(f"admin: {', '.join(_different(before.admin, after.admin))} changed")
    return lines


def _change(old: InterfaceConfig, new: InterfaceConfig) -> Change:
    if not isinstance(old, ServerConfig) or not isinstance(new, ServerConfig):
        if type(old) is not type(new):
            return Change("restart", old, new, (f"{new.name}: is a {_value_kind(new)} now, and starts again",))
        different = _different(old, new)
        if different == ["mark"]:
            return Change("live", old, new, (f"{new.name}: mark changed{_values(old, new, different)}",))
        return _restart(old, new, different)
    different = _different(old, new)
    fixed = [name for name in different if name in _FIXED]
    if fixed:
        return _restart(old, new, fixed)
    lines = [
        f"{new.name}: {_named([name])} changed{_values(old, new, [name])}" for name in different if name != "clients"
    ]
    return Change("live", old, new, (*lines, *_clients(new.name, old.clients, new.clients)))


def _restart(old: InterfaceConfig, new: InterfaceConfig, different: Sequence[str]) -> Change:
    text = f"{new.name}: {_named(different)} changed, so it starts again{_values(old, new, different)}"
    return Change("restart", old, new, (text,))


def _clients(interface: str, old: Sequence[AllowedClient], new: Sequence[AllowedClient]) -> list[str]:
    before, after = ({client.name: client for client in clients} for clients in (old, new))
    # A client is who has its token. One without a name is called by its address, and so gets another name with it.
    renamed = {client.token: client for name, client in before.items() if name not in after}
    lines: list[str] = []
    for name, client in after.items():
        was = before.get(name) or renamed.pop(client.token, None)
        if was is None:
            lines.append(f"{interface} {name}: added")
        elif client != was:
            different = _different(was, client)
            lines.append(f"{interface} {was.name}: {_named(different)} changed{_values(was, client, different)}")
    lines = [*(f"{interface} {client.name}: removed" for client in renamed.values()), *lines]
    return lines or ([f"{interface}: the order of its clients changed"] if old != new else [])


_Part: TypeAlias = InterfaceConfig | AllowedClient | AdminConfig | LogConfig


def _different(old: _Part, new: _Part) -> list[str]:
    return [field.name for field in fields(old) if getattr(old, field.name) != getattr(new, field.name)]


def _named(names: Iterable[str]) -> str:
    return ", ".join(_FIXED.get(name, _NAMES.get(name, name)) for name in names)


def _values(
    old: InterfaceConfig | AllowedClient, new: InterfaceConfig | AllowedClient, different: Sequence[str]
) -> str:
    """``(1500 -> 1400)``, or of several ``(ip 10.10.0.2 -> 10.10.0.3, routes +10.60.0.0/24)``, in so far as it may be
    told."""
    told = [
        (f"{_named([name])} " if len(different) > 1 else "") + _way(getattr(old, name), getattr(new, name))
        for name in different
        if name in _TOLD
    ]
    return f" ({', '.join(told)})" if told else ""


def _way(old: object, new: object) -> str:
    if not isinstance(old, tuple) or not isinstance(new, tuple):
        return f"{_value(old)} -> {_value(new)}"
    before, after = set(old), set(new)
    steps = [*(f"+{it}" for it in new if it not in before), *(f"-{it}" for it in old if it not in after)]
    if len(steps) > _LISTED:
        steps[_LISTED:] = [f"and {len(steps) - _LISTED} more"]
    return " ".join(steps) or "in another order"


def _value(it: object) -> str:
    if isinstance(it, Mark):
        return f"{it.value} in table {it.table}"
    if isinstance(it, bool):
        return "true" if it else "false"
    return "none" if it is None else f"{it:g}" if isinstance(it, float) else str(it)


def _value_kind(config: InterfaceConfig) -> str:
    return "server" if isinstance(config, ServerConfig) else "client"
