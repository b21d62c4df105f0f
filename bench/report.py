"""The table, the targets, the JSON. Pure but for the writing of files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.harness import ROOT

from .metrics import METRICS, Metric
from .plan import VARIANTS, Plan
from .results import Results
from .stats import Spread
from .targets import verdicts

OUT: Final = ROOT / "build" / "bench"

# Which ratios the table shows: variant, base.
RATIOS: Final = (("http", "relay"), ("https", "relay"), ("http", "veth"), ("https", "veth"))


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


def table(results: Results) -> str:
    """Medians with least and most, and medians of the rounds' ratios."""
    head = ["", "unit", *VARIANTS, *(f"{variant}/{base}" for variant, base in RATIOS)]
    rows = [head, *(_row(results, metric) for metric in METRICS)]
    return "\n".join(columns(rows))


def _row(results: Results, metric: Metric) -> list[str]:
    cells = [value(results.spread(metric.key, variant), metric.decimals) for variant in VARIANTS]
    ratios = []
    for variant, base in RATIOS:
        ratio = results.ratio(metric.key, variant, base)
        ratios.append(f"{ratio.median:.2f}" if ratio is not None else "-")
    return [metric.label, metric.unit, *cells, *ratios]


def text(results: Results, plan: Plan) -> str:
    """Everything that is printed at the end."""
    machine = results.machine
    lines = [
        f"{plan.name} bench of {machine.get('date')}: Linux {machine.get('kernel')}, Python {machine.get('python')},"
        f" {machine.get('cores')} cores, load {machine.get('load_before', 0):.1f} before; {results.rounds} rounds",
        "medians (least-most); ratios are medians of the rounds' own; only ratios mean anything elsewhere",
        "",
        table(results),
        "",
        "targets: http to the C relay unless said otherwise; one run is one sample of a machine's mood",
        *(str(verdict) for verdict in verdicts(results)),
    ]
    if results.notes:
        lines += ["", "notes:", *(f"  {note}" for note in results.notes)]
    if results.failures:
        lines += ["", "FAILED:", *(f"  {failure}" for failure in results.failures)]
    return "\n".join(lines)


def as_json(results: Results, plan: Plan) -> dict[str, Any]:
    """The same for a program."""
    return {"plan": plan.name, **results.as_json(), "targets": [verdict.as_json() for verdict in verdicts(results)]}


def write(results: Results, plan: Plan, directory: Path) -> str:
    """``bench.txt`` and ``bench.json`` in that directory, which is made. Returns the text. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    printed = text(results, plan)
    (directory / "bench.txt").write_text(printed + "\n", encoding="utf-8")
    (directory / "bench.json").write_text(json.dumps(as_json(results, plan), indent=2) + "\n", encoding="utf-8")
    return printed
