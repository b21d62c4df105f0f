"""The table, the targets, the JSON. Pure but for the writing of files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.harness import ROOT

from .metrics import METRICS
from .plan import Plan
from .results import LOAD, Results
from .stats import Spread
from .targets import Verdict, further, number, verdicts

OUT: Final = ROOT / "build" / "bench"

# Which ratios the table shows: variant, base.
RATIOS: Final = (
    ("http", "relay"),
    ("http-off", "relay"),
    ("https", "relay"),
    ("http", "relay-default"),
    ("relay", "relay-default"),
    ("tap", "http"),
    ("http", "veth"),
    ("https", "veth"),
)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which the first column is flush left and all others flush right, each as wide as it must be."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def value(spread: Spread | None, decimals: int) -> str:
    """``9.31 (8.90-9.60)``, or ``-``; without the parenthesis for one sample."""
    if spread is None:
        return "-"
    text = f"{spread.median:.{decimals}f}"
    return text if spread.count == 1 else f"{text} ({spread.low:.{decimals}f}-{spread.high:.{decimals}f})"


def table(results: Results, plan: Plan) -> str:
    """Medians with least and most."""
    rows = [["", "unit", *plan.variants]]
    for metric in METRICS:
        cells = [value(results.spread(metric.key, name), metric.decimals) for name in plan.variants]
        rows.append([metric.label, metric.unit, *cells])
    return "\n".join(columns(rows))


def ratios(results: Results, plan: Plan) -> str:
    """Medians of the rounds' own ratios, of every metric that has any."""
    pairs = [pair for pair in RATIOS if set(pair) <= set(plan.variants)]
    rows = [["ratio", *(f"{variant}/{base}" for variant, base in pairs)]]
    for metric in METRICS:
        if metric.measured_in == "start":
            continue  # memory and a start in units of a small C program's say nothing
        found = [results.ratio(metric.key, *pair) for pair in pairs]
        if any(found):
            rows.append([metric.label, *(number(ratio.median if ratio is not None else None) for ratio in found)])
    return "\n".join(columns(rows))


def _rows(title: str, found: Sequence[Verdict], default: str) -> list[list[str]]:
    """What was seen beside what is wanted, a head first; without the columns in which nothing stands."""
    head = [title, "seen", "target", "", "plane off", f"relay on {default}"]
    rows = [head]
    for verdict in found:
        cells = [verdict.target, verdict.mark, number(verdict.plane_off), number(verdict.to_default)]
        rows.append([verdict.what, number(verdict.seen), *cells])
    kept = [index for index in range(len(head)) if index < 4 or any(row[index] != "-" for row in rows[1:])]
    return [[row[index] for index in kept] for row in rows]


def targets(title: str, found: Sequence[Verdict], default: str) -> list[str]:
    """What was seen beside what is wanted. `default`: the machine's congestion control."""
    head, *lines = columns(_rows(title, found, default))
    return [head, *(f"{line}  ({v.how})" if v.how else line for line, v in zip(lines, found, strict=True))]


def congestion(results: Results) -> list[str]:
    """Which congestion control was really used, and where two that are compared used different ones."""
    lines = [f"congestion control seen after each run of TCP (ss -ti); the default here: {results.default_congestion}"]
    for variant, senders in results.congestion.items():
        parts = []
        for who, names in senders.items():
            seen = ", ".join(name if len(names) == 1 else f"{name} {count} x" for name, count in names.most_common())
            parts.append(seen if variant == LOAD else f"{who} {seen}")
        lines.append(f"  {'what goes through' if variant == LOAD else variant}: {'; '.join(parts)}")
    tunnel, relay = (_used(results, variant) for variant in ("http", "relay"))
    if tunnel != relay:
        lines.append(f"  NOT LIKE WITH LIKE: http used {' and '.join(tunnel)}, the relay {' and '.join(relay)}")
    return lines


def _used(results: Results, variant: str) -> list[str]:
    senders = results.congestion.get(variant, {})
    return sorted({name for who in ("client", "server") for name in senders.get(who, ())}) or ["nothing that was seen"]


def data_paths(results: Results) -> list[str]:
    """What the daemons said of the data path that they ran on; what both ends say is said once."""
    lines = ["data path, as status and --version tell:"]
    for variant, ends in results.planes.items():
        said = set(ends.values())
        text = said.pop() if len(said) == 1 else "; ".join(f"{end}: {words}" for end, words in ends.items())
        lines.append(f"  {variant}: {text}")
    return lines


def text(results: Results, plan: Plan) -> str:
    """Everything that is printed at the end."""
    machine = results.machine
    lines = [
        f"{plan.name} bench of {machine.get('date')}: Linux {machine.get('kernel')}, Python {machine.get('python')},"
        f" {machine.get('cores')} cores, load {machine.get('load_before', 0):.1f} before; {results.rounds} rounds",
        "medians (least-most); ratios are medians of the rounds' own; only ratios mean anything elsewhere",
        "",
        table(results, plan),
        "",
        ratios(results, plan),
        "",
        *congestion(results),
        *(data_paths(results) if results.planes else ()),
        "",
        *targets("targets, medians of ratios", verdicts(results), results.default_congestion),
        "",
        *targets("further", further(results), results.default_congestion),
        "",
        "one run is one sample of a machine's mood",
    ]
    if results.notes:
        lines += ["", "notes:", *(f"  {note}" for note in results.notes)]
    if results.failures:
        lines += ["", "FAILED:", *(f"  {failure}" for failure in results.failures)]
    return "\n".join(lines)


def markdown(results: Results, plan: Plan, remark: str = "") -> list[str]:
    """The targets for a document, with what was compared; `remark` is a sentence about the machine."""
    rows = _rows("", [*verdicts(results), *further(results)], results.default_congestion)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    machine = results.machine
    return [
        *lines,
        "",
        f"{str(machine.get('date'))[:10]}, {plan.name} bench, Linux {machine.get('kernel')},"
        f" {machine.get('cores')} cores, load {machine.get('load_before', 0):.0f} before, {results.rounds} rounds."
        + (f" {remark}" if remark else ""),
        "",
        "```text",
        *congestion(results),
        *(data_paths(results) if results.planes else ()),
        "```",
    ]


def as_json(results: Results, plan: Plan) -> dict[str, Any]:
    """The same for a program."""
    return {
        "plan": plan.name,
        **results.as_json(plan),
        "targets": [verdict.as_json() for verdict in verdicts(results)],
        "further": [verdict.as_json() for verdict in further(results)],
    }


def write(results: Results, plan: Plan, directory: Path) -> str:
    """``bench.txt`` and ``bench.json`` in that directory, which is made. Returns the text. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    printed = text(results, plan)
    (directory / "bench.txt").write_text(printed + "\n", encoding="utf-8")
    (directory / "bench.json").write_text(json.dumps(as_json(results, plan), indent=2) + "\n", encoding="utf-8")
    return printed
