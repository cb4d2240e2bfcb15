"""Quantiles, distribution curves and paired bootstrap intervals; pure functions of numpy arrays.

The unit of resampling is the seed: requests of one world depend on each other, worlds of different seeds do not. Two
strategies that met the same seeds are compared pair by pair, so what a lucky world gives to both cancels out
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13: percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from splitglm_core.errors import InputError

Floats: TypeAlias = npt.NDArray[np.float64]

DRAWS: Final = 4096
LEVEL: Final = 0.95
CURVE_POINTS: Final = 201
_SEED: Final = 20_260_101  # of the resampling alone: equal data give equal intervals


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds of its interval of confidence; NaN for all three where there is nothing to estimate.

    ``low`` and ``high`` equal the estimate with a single seed: one world says nothing about others.
    """

    estimate: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        return math.isfinite(self.estimate)

    def shifted(self, by: float) -> Interval:
        return Interval(self.estimate + by, self.low + by, self.high + by)


UNKNOWN: Final = Interval(math.nan, math.nan, math.nan)


def resamples(seeds: int, draws: int = DRAWS) -> npt.NDArray[np.intp]:
    """Indices ``[draws, seeds]`` of bootstrap samples; every one of the ``seeds ** seeds`` when that is not more."""
    if seeds < 1 or draws < 1:
        raise InputError("a bootstrap needs at least one seed and one draw")
    if seeds**seeds <= draws:
        return np.array(list(product(range(seeds), repeat=seeds)), dtype=np.intp)
    return np.random.default_rng(_SEED).integers(0, seeds, (draws, seeds), dtype=np.intp)


def ratio_of_sums(
    numerators: Sequence[float] | Floats,
    denominators: Sequence[float] | Floats,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> Interval:
    """``sum(numerators) / sum(denominators)`` with a percentile interval; entry ``i`` of both is of the same seed.

    Raises:
        InputError: the two differ in length, or a denominator is not positive.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if top.shape != bottom.shape or top.ndim != 1:
        raise InputError("a paired ratio needs two rows of equal length")
    if not len(top):
        return UNKNOWN
    if not (bottom > 0.0).all():
        raise InputError("a ratio needs positive denominators")
    picks = resamples(len(top), draws)
    ratios = top[picks].sum(axis=1) / bottom[picks].sum(axis=1)
    low, high = np.quantile(ratios, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high))


def quantiles(values: Floats, at: Sequence[float]) -> tuple[float, ...]:
    """Linear quantiles of the finite ``values``; NaN where there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return tuple(math.nan for _ in at)
    return tuple(float(q) for q in np.quantile(finite, at))


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a line: ``x`` and ``y`` have one length."""

    x: tuple[float, ...]
    y: tuple[float, ...]


def distribution(values: Floats, points: int = CURVE_POINTS) -> Curve:
    """The cumulative distribution: ``y`` is the share of finite values that are not above ``x``.

    At most ``points`` of its steps are kept, evenly by share; the smallest and the largest value always.
    """
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        return Curve((), ())
    kept = np.unique(np.linspace(0, len(finite) - 1, min(points, len(finite))).round().astype(np.intp))
    shares = np.searchsorted(finite, finite[kept], side="right") / len(finite)
    return Curve(tuple(map(float, finite[kept])), tuple(map(float, shares)))


def thinned(y: Floats, points: int = CURVE_POINTS) -> Curve:
    """``y`` over 1, 2, 3, ... with at most ``points`` points; the first and the last are kept."""
    if not len(y):
        return Curve((), ())
    kept = np.unique(np.linspace(0, len(y) - 1, min(points, len(y))).round().astype(np.intp))
    return Curve(tuple(float(i + 1) for i in kept), tuple(float(v) for v in y[kept]))


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionError:
    """How far predictions were off: the median of |predicted / actual - 1| and the median of predicted / actual - 1.

    Attributes:
        count: pairs that could be compared.
    """

    count: int
    median_abs: float
    bias: float


def prediction_error(predicted: Floats, actual: Floats) -> PredictionError:
    """Of the entries where both are known and the actual value is positive."""
    usable = np.isfinite(predicted) & np.isfinite(actual) & (actual > 0.0)
    if not usable.any():
        return PredictionError(count=0, median_abs=math.nan, bias=math.nan)
    relative = predicted[usable] / actual[usable] - 1.0
    return PredictionError(
        count=int(usable.sum()), median_abs=float(np.median(np.abs(relative))), bias=float(np.median(relative))
    )
