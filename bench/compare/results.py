"""What a comparison has found, and its tables: for a terminal, for a document. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..report import columns, value
from ..stats import Spread
from .tools import TOOLS, About


@dataclass(frozen=True)
class Column:
    """What is measured of a tool, and how it is written."""

    key: str
    label: str
    unit: str
    decimals: int


COLUMNS: Final = (
    Column("tcp_up", "TCP up", "Gbit/s", 2),
    Column("tcp_down", "TCP down", "Gbit/s", 2),
    Column("cpu_up", "CPU up, both ends", "s/GB", 2),
    Column("cpu_down", "CPU down, both ends", "s/GB", 2),
    Column("machine_up", "CPU up, whole machine", "s/GB", 2),
    Column("machine_down", "CPU down, whole machine", "s/GB", 2),
    Column("ping", "ping, idle", "us", 0),
    Column("request", "TCP request and answer", "us", 0),
)
GO: Final = "wireguard-go"
"""As its version begins. A reader would take "WireGuard" for the kernel's, which is many times as fast."""
# A document has room for fewer.
_IN_DOCUMENT: Final = ("tcp_up", "tcp_down", "cpu_up", "cpu_down", "ping", "request")


@dataclass
class Comparison:
    """Samples by tool and column, one a round."""

    machine: dict[str, Any] = field(default_factory=dict)
    default_congestion: str = ""
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    congestion: dict[str, set[str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """Tools that are not here, and why."""
    failures: list[str] = field(default_factory=list)

    def add(self, tool: str, values: Mapping[str, float]) -> None:
        """What one measurement gave."""
        for key, sample in values.items():
            self.samples.setdefault(tool, {}).setdefault(key, []).append(sample)

    def spread(self, tool: str, key: str) -> Spread | None:
        """None if it was not measured."""
        found = self.samples.get(tool, {}).get(key)
        return Spread.of(found) if found else None

    @property
    def rounds(self) -> int:
        """The most samples that anything has."""
        return max((len(found) for columns in self.samples.values() for found in columns.values()), default=0)

    @property
    def measured(self) -> list[str]:
        """The tools that were there, in the table's order."""
        return [name for name in TOOLS if name in self.samples]

    def label(self, name: str) -> str:
        """The tool's name for people; which WireGuard it was."""
        label = about(name).label
        return f"{label}, {GO}" if self.versions.get(name, "").startswith(GO) else label

    def missing(self, names: Sequence[str]) -> list[str]:
        """What should have been measured of these tools and was not; but for those that are not here."""
        return [
            f"{column.label} of {name}"
            for name in names
            if name not in self.absent
            for column in COLUMNS
            if _has(name, column.key) and self.spread(name, column.key) is None
        ]

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "machine": self.machine,
            "rounds": self.rounds,
            "default_congestion": self.default_congestion,
            "versions": self.versions,
            "congestion": {name: sorted(seen) for name, seen in self.congestion.items()},
            "absent": self.absent,
            "failures": self.failures,
            "samples": self.samples,
        }


def _has(name: str, key: str) -> bool:
    """Whether there is anything to measure: a tool that carries no packets has no ping, no tunnel has no process.

    Nor has a kernel's WireGuard, so processes are not asked of WireGuard at all; the machine's CPU has it.
    """
    if key == "ping":
        return about(name).packets
    return not (key.startswith("cpu_") and name in ("veth", "wireguard"))


def about(name: str) -> About:
    """What a reader must know of a tool. Raises KeyError."""
    return TOOLS[name][1]


def text(found: Comparison) -> str:
    """Everything that is printed at the end."""
    machine = found.machine
    head = ["", *(f"{column.label}, {column.unit}" for column in COLUMNS)]
    rows = [head]
    for name in found.measured:
        cells = [value(found.spread(name, column.key), column.decimals) for column in COLUMNS]
        rows.append([found.label(name), *cells])
    lines = [
        f"comparison of {machine.get('date')}: Linux {machine.get('kernel')}, Python {machine.get('python')},"
        f" {machine.get('cores')} cores, load {machine.get('load_before', 0):.1f} before; {found.rounds} rounds",
        f"medians (least-most); every program with its defaults; default congestion control {found.default_congestion}",
        "",
        *columns(rows),
        "",
    ]
    for name in found.measured:
        seen = ", ".join(sorted(found.congestion.get(name, ()))) or "no TCP connection that stays"
        lines.append(f"  {found.label(name)}: {found.versions.get(name, 'the kernel')}; {seen}")
    if found.absent:
        lines += ["", "not measured:", *(f"  {about(name).label}: {why}" for name, why in found.absent.items())]
    if found.failures:
        lines += ["", "FAILED:", *(f"  {failure}" for failure in found.failures)]
    return "\n".join(lines)


def markdown(found: Comparison, remark: str = "") -> list[str]:
    """The same for a document: medians only, and what a reader must know of each tool."""
    shown = [column for column in COLUMNS if column.key in _IN_DOCUMENT]
    rows: list[Sequence[str]] = [
        ["", "over", "encrypts", "behind a reverse proxy", *(f"{column.label}, {column.unit}" for column in shown)]
    ]
    for name in found.measured:
        known = about(name)
        cells = []
        for column in shown:
            spread = found.spread(name, column.key)
            cells.append("-" if spread is None else f"{spread.median:.{column.decimals}f}")
        rows.append([found.label(name), known.over, _yes(known.encrypts), _yes(known.proxy), *cells])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    machine = found.machine
    day = str(machine.get("date", time.strftime("%Y-%m-%d")))[:10]
    lines += [
        "",
        f"{day}, Linux {machine.get('kernel')}, {machine.get('cores')} cores,"
        f" load {machine.get('load_before', 0):.0f} before, medians of {found.rounds} rounds."
        + (f" {remark}" if remark else ""),
    ]
    versions = [f"{found.label(name)}: {found.versions[name]}" for name in found.measured if name in found.versions]
    if versions:
        lines += ["", f"Versions: {'; '.join(versions)}."]
    for name, why in found.absent.items():
        lines += ["", f"{about(name).label} was not measured: {why}."]
    return lines


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
