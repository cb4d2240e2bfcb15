"""Regret: how much more a strategy cost than the best choices would have, per request and in hindsight.

Per request: against the best plan at that moment in the strategy's own state, whom a clairvoyant would have chosen
(research on learning to split calls it dynamic or per-round regret; ANS, WWW 2021, arXiv 2102.02638). In hindsight:
against the one fixed arm that would have been best for a whole class of links (static regret, EXP3: Auer et al. 2002).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from splitglm_core.errors import InputError
from splitglm_sims.study.statistics import UNKNOWN, Floats, Interval, ratio_of_sums


@dataclass(frozen=True, slots=True)
class SeedTotals:
    """Sums over the requests of each seed, in one order of seeds.

    Attributes:
        value: of the objective.
        best: of the per-request best; None where the run did not look for it.
    """

    value: Floats
    best: Floats | None = None

    def __post_init__(self) -> None:
        if self.best is not None and self.best.shape != self.value.shape:
            raise InputError("values and best values are of the same seeds")

    @property
    def total(self) -> float:
        return float(self.value.sum())


def regret(totals: SeedTotals) -> Interval:
    """``sum(value) / sum(best) - 1`` with its interval; unknown where nobody looked for the best."""
    if totals.best is None or not len(totals.best):
        return UNKNOWN
    return ratio_of_sums(totals.value, totals.best).shifted(-1.0)


def cumulative_regret(value: Floats, best: Floats) -> Floats:
    """``[requests]``: the sum of ``value - best`` up to and including each request."""
    if value.shape != best.shape:
        raise InputError("each request has a value and a best value")
    return np.cumsum(value - best)


@dataclass(frozen=True, slots=True)
class Versus:
    """One strategy against a rival on the same worlds: ``ratio`` below 1 means that it cost less.

    Attributes:
        rival: its label.
        worst_seed: the largest ratio of a single seed.
    """

    rival: str
    ratio: Interval
    worst_seed: float


def versus(totals: SeedTotals, rival: str, other: SeedTotals) -> Versus:
    """Paired by seed."""
    if totals.value.shape != other.value.shape:
        raise InputError(f"the runs to be compared with {rival} are not of the same seeds")
    ratio = ratio_of_sums(totals.value, other.value)
    worst = float((totals.value / other.value).max()) if len(totals.value) else math.nan
    return Versus(rival, ratio, worst)


def cheapest(among: Mapping[str, SeedTotals]) -> str | None:
    """The label with the least sum over all seeds (the earlier one on a tie); None when there is none."""
    return min(among, key=lambda label: among[label].total, default=None)


def versus_best(totals: SeedTotals, among: Mapping[str, SeedTotals]) -> Versus | None:
    """Against the best of several in hindsight: the one that was cheapest over all seeds together."""
    rival = cheapest(among)
    return None if rival is None else versus(totals, rival, among[rival])
