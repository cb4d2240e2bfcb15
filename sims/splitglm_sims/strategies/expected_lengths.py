"""A strategy told how long answers tend to be, where its own paper has requests of one size.

What a published baseline is to be compared by is its way of choosing. So it is given the product's estimate of the
answer's length (``ReplyLength``, from the replies that it saw itself) in place of the caller's bound.
"""

from __future__ import annotations

from dataclasses import replace

from splitglm_core.plan import SplitPlan
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import Observation, ReplyEnded
from splitglm_partitioner.reply_length import ReplyLength
from splitglm_sims.strategies.strategy import Strategy, Task


class ExpectedLengths:
    """``inner`` with ``expected_new_tokens`` of each request as learnt."""

    def __init__(self, inner: Strategy) -> None:
        self._inner, self._lengths = inner, ReplyLength()

    @property
    def clairvoyant(self) -> bool:
        """As ``inner``."""
        return self._inner.clairvoyant

    def probe(self, task: Task) -> Probing:
        """As ``inner`` wants it."""
        return self._inner.probe(self._told(task))

    def choose(self, task: Task) -> SplitPlan:
        """As ``inner`` does with the length that is expected."""
        return self._inner.choose(self._told(task))

    def observe(self, observation: Observation) -> None:
        """Both learn."""
        if isinstance(observation, ReplyEnded):
            self._lengths.observe(observation)
        self._inner.observe(observation)

    def _told(self, task: Task) -> Task:
        request = task.situation.request
        most = request.max_new_tokens or request.expected_new_tokens
        expected = self._lengths.expected(task.genre, most)
        told = replace(request, expected_new_tokens=expected, max_new_tokens=most)
        return replace(task, situation=replace(task.situation, request=told))
