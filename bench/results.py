"""The samples of a run, and the ratios that they make. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from .metrics import BY_KEY, METRICS
from .plan import Plan
from .stats import Spread, paired

LOAD = "load"
"""In `Results.congestion`: what goes through the tunnels."""


@dataclass
class Results:
    """Samples by metric, variant and round; and what could not be measured."""

    machine: dict[str, Any] = field(default_factory=dict)
    cipher: str = ""
    default_congestion: str = ""
    """Of the machines of the bench."""
    congestion: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    """By variant and by who sends: how often each congestion control was seen after a run of TCP."""
    planes: dict[str, dict[str, str]] = field(default_factory=dict)
    """By variant and end: what the daemon said last of the data path it runs on."""
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _samples: dict[tuple[str, str], dict[int, float]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, metric: str, variant: str, number: int, value: float) -> None:
        """The value of a round, in the metric's unit."""
        self._samples[metric, variant][number] = value

    def saw_congestion(self, variant: str, who: str, name: str) -> None:
        """What a sender of a variant used in a run of TCP."""
        self.congestion.setdefault(variant, {}).setdefault(who, Counter())[name] += 1

    def spread(self, metric: str, variant: str) -> Spread | None:
        """None if it was not measured."""
        samples = self._samples.get((metric, variant))
        return Spread.of(list(samples.values())) if samples else None

    def median(self, metric: str, variant: str) -> float | None:
        """Likewise."""
        spread = self.spread(metric, variant)
        return spread.median if spread is not None else None

    def by_round(self, metric: str, variant: str, *, above: str | None = None) -> list[float | None]:
        """One value a round, in order; with `above`, what is left after that variant's value is taken away."""
        samples = self._samples.get((metric, variant), {})
        base = self._samples.get((metric, above), {}) if above is not None else {}
        values: list[float | None] = []
        for number in range(self.rounds):
            value, less = samples.get(number), base.get(number) if above is not None else 0.0
            values.append(value - less if value is not None and less is not None else None)
        return values

    @property
    def rounds(self) -> int:
        """How many have any sample."""
        return 1 + max((number for samples in self._samples.values() for number in samples), default=-1)

    def ratio(self, metric: str, variant: str, base: str, *, above: str | None = None) -> Spread | None:
        """Over another variant's value of the same round: minutes apart at most, not a bench apart.

        With `above`, both after that variant's value is taken away: what a tunnel adds to no tunnel.
        """
        ratios = paired(self.by_round(metric, variant, above=above), self.by_round(metric, base, above=above))
        return Spread.of(ratios) if ratios else None

    def over(self, metric: str, variant: str, base_metric: str, base: str) -> Spread | None:
        """A value over another metric's value in the same round."""
        ratios = paired(self.by_round(metric, variant), self.by_round(base_metric, base))
        return Spread.of(ratios) if ratios else None

    def missing(self, plan: Plan) -> list[str]:
        """Metrics for which a variant that should have a value has none."""
        return [
            f"{metric.key} of {variant}"
            for metric in METRICS
            for variant in measured_by(metric.key, plan)
            if (metric.key, variant) not in self._samples
        ]

    def as_json(self, plan: Plan) -> dict[str, Any]:
        """Everything, for a file."""
        return {
            "machine": self.machine,
            "rounds": self.rounds,
            "cipher": self.cipher,
            "default_congestion": self.default_congestion,
            "congestion": self.congestion,
            "planes": self.planes,
            "notes": self.notes,
            "failures": self.failures,
            "metrics": {metric.key: self._metric_as_json(metric.key, plan) for metric in METRICS},
        }

    def _metric_as_json(self, key: str, plan: Plan) -> dict[str, Any]:
        variants = {}
        for variant in measured_by(key, plan):
            spread = self.spread(key, variant)
            if spread is None:
                continue
            entry: dict[str, Any] = {
                "samples": self.by_round(key, variant),
                "median": spread.median,
                "min": spread.low,
                "max": spread.high,
            }
            for base in ("relay", "relay-default", "veth"):
                ratio = self.ratio(key, variant, base)
                if ratio is not None and variant != base:
                    entry[f"to_{base}"] = {"median": ratio.median, "min": ratio.low, "max": ratio.high}
            variants[variant] = entry
        return variants


def measured_by(key: str, plan: Plan) -> tuple[str, ...]:
    """The variants that have a value for a metric. Raises KeyError if there is no such metric."""
    metric = BY_KEY[key]
    for step in plan.steps:
        if step.name == metric.measured_in:
            # Without a tunnel there is no process to look at; the machine as a whole is.
            return tuple(name for name in step.variants if name != "veth" or not metric.of_a_process)
    return ()
