"""The picture for the docs: every metric as a ratio to the C relay. Needs matplotlib, of the extra [bench]."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from .metrics import METRICS, Metric
from .results import Results

_SHOWN: Final = {"veth": "#b8b8b8", "http": "#2a6fbb", "http-off": "#9cc4ea", "https": "#e08a1e"}
_LABELS: Final = {
    "veth": "no tunnel",
    "http": "tapotun, http",
    "http-off": "tapotun, http, without the plane",
    "https": "tapotun, https through nginx",
}
_ROW: Final = 0.78


def draw(results: Results, file: Path) -> None:
    """A PNG. Raises ImportError without matplotlib, OSError."""
    import matplotlib as mpl  # heavy, and not there for those who only test

    mpl.use("agg")
    from matplotlib import pyplot as plt

    halves = [
        [metric for metric in METRICS if metric.higher_is_better is better and _is_shown(results, metric)]
        for better in (True, False)
    ]
    figure, panels = plt.subplots(1, 2, figsize=(13, 6.2), layout="constrained")
    titles = ("more is better", "less is better")
    for axes, metrics, title in zip(panels, halves, titles, strict=True):
        _panel(axes, results, metrics)
        axes.set_title(title, fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(_SHOWN) + 1, frameon=False)
    machine = results.machine
    where = f"{machine.get('cores')} cores, Linux {machine.get('kernel')}, {str(machine.get('date'))[:10]}"
    figure.suptitle(
        f"Ratio to a relay in C in the same round: median, least and most ({results.rounds} rounds, {where})",
        fontsize=11,
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _is_shown(results: Results, metric: Metric) -> bool:
    # Memory and start have absolute targets; what they are in units of a small C program says nothing.
    # The relay has one client.
    return (
        not metric.key.startswith(("rss", "start", "jain", "eight"))
        and results.ratio(metric.key, "http", "relay") is not None
    )


def _panel(axes: Any, results: Results, metrics: list[Metric]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    shown = {variant: colour for variant, colour in _SHOWN.items() if results.spread("tcp_up", variant) is not None}
    thickness = _ROW / max(len(shown), 1)
    for place, (variant, colour) in enumerate(shown.items()):
        heights, medians, below, above = [], [], [], []
        for row, metric in enumerate(metrics):
            ratio = results.ratio(metric.key, variant, "relay")
            if ratio is None:
                continue
            heights.append(row + (place - (len(shown) - 1) / 2) * thickness)
            medians.append(ratio.median)
            below.append(ratio.median - ratio.low)
            above.append(ratio.high - ratio.median)
        axes.barh(
            heights,
            [median - 1 for median in medians],
            left=1,
            height=thickness,
            color=colour,
            label=_LABELS[variant],
        )
        axes.errorbar(medians, heights, xerr=[below, above], fmt="none", elinewidth=0.8, ecolor="#333333")
        for height, median, more in zip(heights, medians, above, strict=True):
            axes.annotate(
                f"{median:.2g}" if median < 0.1 else f"{median:.2f}",
                (max(median + more, 1), height),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
    axes.axvline(1.0, color="#aa0000", linewidth=1, label="C relay")
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:.2g}")
    axes.set_yticks(range(len(metrics)), [metric.label for metric in metrics], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
