"""Bayesian online change-point detection on a series of numbers.

Source: Adams and MacKay, *Bayesian Online Changepoint Detection*, arXiv 0710.3742 (2007): the recursion over the run
length ``r``, the number of observations since the last change. Observations are normal with unknown mean and variance
under the conjugate normal-gamma prior, so each run length predicts a Student's t; a change has the constant hazard
``1 / expected_run``. Run lengths are cut off at ``MAX_RUN``, which merges all longer ones.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InputError

MAX_RUN = 256
MAX_VALUE = 1e100
Vector = NDArray[np.float64]


class ChangePoints:
    """Posterior of the run length, updated by each number.

    Args:
        expected_run: observations between changes, on average; more than 1.
        mean, strength, shape, scale: of the normal-gamma prior: the mean is as sure as ``strength`` observations, the
            variance is ``scale / shape`` as if ``2 * shape`` observations had shown it.
    """

    def __init__(
        self, *, expected_run: float, mean: float, strength: float = 1.0, shape: float = 1.0, scale: float = 1.0
    ) -> None:
        if not (1.0 < expected_run < math.inf and min(strength, shape, scale) > 0.0 and math.isfinite(mean)):
            raise InputError("change detection needs expected_run > 1, a finite mean and a positive prior")
        self._hazard = 1.0 / expected_run
        self._prior = (mean, strength, shape, scale)
        self._mean, self._strength = np.array([mean]), np.array([strength])
        self._shape, self._scale = np.array([shape]), np.array([scale])
        self.posterior: Vector = np.array([1.0])
        """Entry ``r`` is the chance that the run is ``r`` observations long; sums to 1."""

    def observe(self, value: float) -> None:
        """One step of the recursion (their equations 1 to 3). InputError for a number beyond ``MAX_VALUE``."""
        if not abs(value) <= MAX_VALUE:
            raise InputError(f"change detection needs numbers of at most {MAX_VALUE:g}")
        weight = self.posterior * np.exp(self._log_predictive(value))
        total = float(weight.sum())
        if total <= 0.0:  # every run finds it impossible: underflow of an extreme outlier
            weight = self.posterior
            total = 1.0
        grown = np.concatenate(([self._hazard * total], (1.0 - self._hazard) * weight))
        mean, strength, shape, scale = self._updated(value)
        if len(grown) > MAX_RUN:
            grown[-2] += grown[-1]
            grown, mean, strength = grown[:-1], mean[:-1], strength[:-1]
            shape, scale = shape[:-1], scale[:-1]
        self.posterior = grown / grown.sum()
        self._mean, self._strength, self._shape, self._scale = mean, strength, shape, scale

    @property
    def run(self) -> int:
        """The most likely run length."""
        return int(self.posterior.argmax())

    @property
    def level(self) -> float:
        """The mean's estimate under the most likely run length."""
        return float(self._mean[self.run])

    def _log_predictive(self, value: float) -> Vector:
        """Log density of ``value`` under each run length: Student's t with ``2 * shape`` degrees of freedom."""
        degrees = 2.0 * self._shape
        spread = self._scale * (self._strength + 1.0) / (self._shape * self._strength)
        squared = (value - self._mean) ** 2 / (degrees * spread)
        constant = np.array([math.lgamma((d + 1.0) / 2.0) - math.lgamma(d / 2.0) for d in degrees.tolist()])
        out: Vector = constant - 0.5 * np.log(degrees * math.pi * spread) - (degrees + 1.0) / 2.0 * np.log1p(squared)
        return out

    def _updated(self, value: float) -> tuple[Vector, Vector, Vector, Vector]:
        """Parameters of every run length after ``value``, the prior's in front for a run of none."""
        mean = (self._strength * self._mean + value) / (self._strength + 1.0)
        scale = self._scale + self._strength * (value - self._mean) ** 2 / (2.0 * (self._strength + 1.0))
        grown = (mean, self._strength + 1.0, self._shape + 0.5, scale)
        first, second, third, fourth = (np.concatenate(([p], g)) for p, g in zip(self._prior, grown, strict=True))
        return first, second, third, fourth
