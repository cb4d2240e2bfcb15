"""EXP3: exponential weights for the adversarial bandit problem.

Source: Auer, Cesa-Bianchi, Freund and Schapire, *The Nonstochastic Multiarmed Bandit Problem*, SIAM J. Comput. 32(1),
2002, algorithm Exp3. Arms are drawn with ``p_i = (1 - gamma) w_i / sum(w) + gamma / K``; the reward ``x`` in
``[0, 1]`` of the one drawn multiplies its weight by ``exp(gamma x / (p_i K))``.

Differs: an arm that the moment does not allow is asleep: the others share its chance and keep their weights. Weights
are kept as logarithms, so that they cannot overflow.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np

from splitglm_core.errors import InputError
from splitglm_sims.strategies.linear_bandit import Vector

T = TypeVar("T", bound=Hashable)


class ExponentialWeights(Generic[T]):
    """Exp3 over arms that are named as they appear.

    Args:
        gamma: share of uniform exploration, (0, 1].
        seed: of the draws.
    """

    def __init__(self, *, gamma: float, seed: int) -> None:
        if not 0.0 < gamma <= 1.0:
            raise InputError("gamma lies in (0, 1]")
        self._gamma, self._random = gamma, random.Random(seed)
        self._log_weights: dict[T, float] = {}

    def chances(self, arms: Sequence[T]) -> Vector:
        """``p`` of each of ``arms``, ``[n]``; they sum to 1."""
        logs = np.array([self._log_weights.get(arm, 0.0) for arm in arms])
        weights = np.exp(logs - logs.max())
        out: Vector = (1.0 - self._gamma) * weights / weights.sum() + self._gamma / len(arms)
        return out

    def draw(self, arms: Sequence[T]) -> tuple[T, float, int]:
        """An arm, the chance that it had, and the number of arms: what ``reward`` is to be told."""
        chances = self.chances(arms)
        point, summed = self._random.random(), chances.cumsum()
        index = min(int(np.searchsorted(summed, point, side="right")), len(arms) - 1)
        return arms[index], float(chances[index]), len(arms)

    def reward(self, arm: T, chance: float, arms: int, reward: float) -> None:
        """The arm drawn with ``chance`` among ``arms`` earned ``reward`` in ``[0, 1]``."""
        if not 0.0 <= reward <= 1.0:
            raise InputError("a reward lies in [0, 1]")
        self._log_weights[arm] = self._log_weights.get(arm, 0.0) + self._gamma * reward / (chance * arms)
