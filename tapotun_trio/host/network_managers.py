"""Finds network managers that remove addresses, routes or rules of other programs, and the settings that prevent it.

Blocking: each search takes some milliseconds, because /proc has a directory per process. Files that cannot be read
count as absent.

Follows networkd.conf(5), systemd.network(5), NetworkManager.conf(5) and dhcpcd.conf(5).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Final, Literal, TypeAlias

Manager: TypeAlias = Literal["systemd-networkd", "NetworkManager", "dhcpcd"]
Kind: TypeAlias = Literal["address", "route", "rule", "link"]
"""What was removed or changed. ``link``: the interface was set down, renamed or given another MTU."""

MANAGERS: Final[tuple[Manager, ...]] = ("systemd-networkd", "NetworkManager", "dhcpcd")
KINDS: Final[tuple[Kind, ...]] = ("address", "route", "rule", "link")

_CGROUPS: Final = "sys/fs/cgroup/system.slice"
_NAME_BYTES: Final = 15  # longest process name in /proc, from TASK_COMM_LEN of linux/sched.h
_NO: Final = frozenset({"0", "no", "n", "false", "f", "off"})  # parse_boolean of systemd
_YES: Final = frozenset({"1", "yes", "y", "true", "t", "on"})
_NETWORKD_DIRECTORIES: Final = ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd")
_NETWORKD_SETTINGS: Final[dict[Kind, str]] = {"rule": "ManageForeignRoutingPolicyRules", "route": "ManageForeignRoutes"}

Section: TypeAlias = tuple[str, list[tuple[str, str]]]
"""The name of a section, and its keys and values in order."""


def managers_running(root: str = "/") -> list[Manager]:
    """Return the managers that run here. They are found by process name, or by systemd service where processes are
    hidden."""
    names = set(_process_names(root))
    return [
        manager
        for manager in MANAGERS
        if manager[:_NAME_BYTES] in names or os.path.isdir(os.path.join(root, _CGROUPS, f"{manager}.service"))
    ]


def suspects(senders: Iterable[int], kinds: Collection[Kind], interface: str) -> tuple[list[Manager], bool]:
    """Return the managers that may have removed items of these kinds from an interface of ours.

    Args:
        senders: the netlink port numbers of the programs that made the change. The port number of a program's first
            netlink socket is its process id.

    Returns:
        The programs, and whether one of them certainly made the change. If that is not certain, these are the programs
        that run here and whose settings allow such a change.
    """
    names = {_process_name("/", pid) for pid in senders}
    if caught := [manager for manager in MANAGERS if manager[:_NAME_BYTES] in names]:
        return caught, True
    return [manager for manager in managers_running() if taken_by(manager, interface) & set(kinds)], False


def taken_by(manager: Manager, interface: str, root: str = "/") -> set[Kind]:
    """Return what the program, with its current settings, may remove from an interface of ours."""
    match manager:
        case "systemd-networkd":
            foreign: set[Kind] = {
                kind for kind, setting in _NETWORKD_SETTINGS.items() if _networkd_setting(root, setting) not in _NO
            }
            # Rules belong to no link, so it removes any. It removes routes and addresses only from links that it
            # manages.
            return foreign | {"address", "link"} if _networkd_configures(root, interface) else foreign & {"rule"}
        case "NetworkManager":
            return set() if _is_unmanaged(root, interface) else {"address", "route", "link"}
        case "dhcpcd":
            return set() if _is_denied(root, interface) else {"address", "route", "link"}


def remedy(manager: Manager, kinds: Collection[Kind], interface: str) -> str:
    """Return an instruction: the setting that keeps the program from removing items of these kinds."""
    match manager:
        case "systemd-networkd":
            settings = [f"{setting}=no" for kind, setting in _NETWORKD_SETTINGS.items() if kind in kinds]
            parts = [f"set {' and '.join(settings)} in [Network] of /etc/systemd/networkd.conf"] if settings else []
            if not {"address", "link"}.isdisjoint(kinds):
                parts.append(
                    f"make a file 05-{interface}.network in /etc/systemd/network with [Match] Name={interface} "
                    "and [Link] Unmanaged=yes"
                )
            return ", ".join(parts)
        case "NetworkManager":
            file = "/etc/NetworkManager/conf.d/tapotun.conf"
            return f"set unmanaged-devices=interface-name:{interface} in [keyfile] of {file}"
        case "dhcpcd":
            return f"add `denyinterfaces {interface}` to /etc/dhcpcd.conf"


# -- systemd-networkd


def _networkd_setting(root: str, name: str) -> str:
    """Return the value of a setting in [Network] of networkd.conf, in lower case; empty if it is not set."""
    main = next((text for text in _of_each(root, _NETWORKD_DIRECTORIES, "networkd.conf") if text), "")
    texts = [main, *_drop_ins(root, [f"{path}/networkd.conf.d" for path in _NETWORKD_DIRECTORIES], ".conf")]
    value = ""
    for text in texts:
        for section, entries in _sections(text):
            if section == "Network":
                value = next((value for key, value in reversed(entries) if key == name), value)
    return value.lower()


def _networkd_configures(root: str, interface: str) -> bool:
    """Whether the first .network file that matches the interface makes systemd-networkd manage it."""
    for text in _drop_ins(root, [f"{path}/network" for path in _NETWORKD_DIRECTORIES], ".network"):
        sections = _sections(text)
        match = [entry for section, entries in sections if section == "Match" for entry in entries]
        if match and all(_matches_tun(key, value, interface) for key, value in match):
            link = [entry for section, entries in sections if section == "Link" for entry in entries]
            return next((value.lower() for key, value in reversed(link) if key == "Unmanaged"), "") not in _YES
    return False


def _matches_tun(key: str, value: str, interface: str) -> bool:
    """Whether a condition of a [Match] section holds for a TUN interface of this name."""
    actual = {"Name": interface, "Type": "none", "Kind": "tun", "Driver": "tun"}.get(key)
    if actual is None:
        return False
    patterns = value.split()
    inverted = bool(patterns) and patterns[0].startswith("!")
    if inverted:
        patterns[0] = patterns[0][1:]
    return any(fnmatchcase(actual, pattern) for pattern in patterns) != inverted


# -- NetworkManager and dhcpcd


def _is_unmanaged(root: str, interface: str) -> bool:
    directories = ("etc/NetworkManager/conf.d", "run/NetworkManager/conf.d", "usr/lib/NetworkManager/conf.d")
    texts = [_read(root, "etc/NetworkManager/NetworkManager.conf"), *_drop_ins(root, directories, ".conf")]
    specs = ""
    for text in texts:
        for section, entries in _sections(text):
            for key, value in entries:
                if section == "keyfile" and key == "unmanaged-devices":
                    specs = value
                elif section == "keyfile" and key == "unmanaged-devices+":
                    specs += f";{value}"
    words = [word.strip() for word in specs.replace(",", ";").split(";") if word.strip()]
    excepted = any(_is_spec_of(word.removeprefix("except:"), interface) for word in words if word.startswith("except:"))
    return not excepted and any(_is_spec_of(word, interface) for word in words if not word.startswith("except:"))


def _is_spec_of(spec: str, interface: str) -> bool:
    """Whether a device spec of NetworkManager matches a TUN interface of this name."""
    kind, _, pattern = spec.rpartition(":")
    if kind == "interface-name":
        return pattern[1:] == interface if pattern.startswith("=") else fnmatchcase(interface, pattern.lstrip("~"))
    return (kind == "" and pattern in ("*", interface)) or (kind == "type" and pattern == "tun")


def _is_denied(root: str, interface: str) -> bool:
    allowed: list[str] = []
    for line in _read(root, "etc/dhcpcd.conf").splitlines():
        words = line.replace(",", " ").split()
        if words[:1] == ["denyinterfaces"] and any(fnmatchcase(interface, pattern) for pattern in words[1:]):
            return True
        if words[:1] == ["allowinterfaces"]:
            allowed += words[1:]
    return bool(allowed) and not any(fnmatchcase(interface, pattern) for pattern in allowed)


# -- files and processes


def _sections(text: str) -> list[Section]:
    """Parse a file in the INI style of systemd and GLib into its sections, in order."""
    found: list[Section] = []
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("[") and line.endswith("]"):
            found.append((line[1:-1], []))
        elif found and "=" in line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            found[-1][1].append((key.strip(), value.strip()))
    return found


def _drop_ins(root: str, directories: Iterable[str], suffix: str) -> list[str]:
    """Return the texts of the files in several directories, ordered by file name. If several directories have a file of
    the same name, only the file in the first of them counts."""
    paths: dict[str, str] = {}
    for directory in directories:
        try:
            names = os.listdir(os.path.join(root, directory))
        except OSError:
            continue
        for name in names:
            if name.endswith(suffix):
                paths.setdefault(name, os.path.join(directory, name))
    return [_read(root, paths[name]) for name in sorted(paths)]


def _of_each(root: str, directories: Iterable[str], name: str) -> Iterator[str]:
    return (_read(root, os.path.join(directory, name)) for directory in directories)


def _process_names(root: str) -> Iterator[str]:
    try:
        entries = os.listdir(os.path.join(root, "proc"))
    except OSError:
        return
    for entry in entries:
        if entry.isdecimal():
            yield _process_name(root, int(entry))


def _process_name(root: str, pid: int) -> str:
    """Return the name of a process, at most 15 bytes; empty if there is no such process, or it is hidden."""
    return _read(root, f"proc/{pid}/comm").rstrip("\n") if pid > 0 else ""


def _read(root: str, path: str) -> str:
    """Return the text of a file; empty if it cannot be read."""
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
