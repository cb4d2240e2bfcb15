"""Linear bandits over plans: least squares with an upper confidence bonus, for a cost that may drift.

The mean cost of an arm with features ``x`` is ``theta . x``, ``theta`` unknown; the arm of the lowest ``theta . x``
minus its confidence width is optimistic. Three memories:

* plain: LinUCB (Li et al., WWW 2010): every sample counts the same for ever;
* sliding: the last ``window`` samples only (SW-LinUCB, Cheung et al., AISTATS 2019);
* discounted: weights ``discount ** age`` (D-LinUCB, Russac et al., NeurIPS 2019), whose width uses a second matrix with
  squared weights, ``V^-1 W V^-1``.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InputError

Vector = NDArray[np.float64]


class LinearBandit:
    """Regularised least squares towards ``start``, and the width of its confidence.

    Args:
        start: the expectation of ``theta`` before any sample, ``[d]``.
        ridge: how many samples of unit features the expectation is worth; > 0.
        discount: weight of a sample per later one, (0, 1]; 1 is plain.
        window: samples kept; 0 for all. Not together with a discount.
    """

    def __init__(self, start: Vector, *, ridge: float = 1.0, discount: float = 1.0, window: int = 0) -> None:
        if not (ridge > 0.0 and 0.0 < discount <= 1.0 and window >= 0) or (window and discount < 1.0):
            raise InputError("a linear bandit needs ridge > 0 and either a discount in (0, 1] or a window")
        self._start, self._ridge, self._discount, self._window = start, ridge, discount, window
        unit = ridge * np.eye(len(start))
        self._v, self._w = unit.copy(), unit.copy()
        self._b = np.zeros(len(start))
        self._kept: deque[tuple[Vector, float]] = deque()
        self._solve()

    def observe(self, features: Vector, cost: float) -> None:
        """A sample of an arm with ``features`` ``[d]`` cost this."""
        residual = cost - float(features @ self._start)
        outer, gamma = np.outer(features, features), self._discount
        if gamma < 1.0:
            unit = self._ridge * np.eye(len(features))
            self._v = gamma * self._v + outer + (1.0 - gamma) * unit
            self._w = gamma * gamma * self._w + outer + (1.0 - gamma * gamma) * unit
            self._b = gamma * self._b
        else:
            self._v = self._v + outer
        self._b = self._b + features * residual
        if self._window:
            self._kept.append((features, residual))
            if len(self._kept) > self._window:
                old, gone = self._kept.popleft()
                self._v = self._v - np.outer(old, old)
                self._b = self._b - old * gone
        self._solve()

    def expected(self, features: Vector) -> Vector:
        """Mean cost of each row of ``features`` ``[n, d]``."""
        out: Vector = features @ self.theta
        return out

    def width(self, features: Vector) -> Vector:
        """``sqrt(x' V^-1 x)`` of each row, with ``V^-1 W V^-1`` in the middle where samples are discounted."""
        out: Vector = np.sqrt(np.maximum(np.einsum("nd,de,ne->n", features, self._middle, features), 0.0))
        return out

    def _solve(self) -> None:
        inverse = np.linalg.inv(self._v)
        self._middle: Vector = np.asarray(inverse @ self._w @ inverse if self._discount < 1.0 else inverse)
        self.theta: Vector = np.asarray(self._start + inverse @ self._b)
