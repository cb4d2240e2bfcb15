"""What predictions miss after all that is measured: one factor per arm for TTFT and one for seconds per token.

The factors stand for what the model leaves out and no estimator follows, such as a profile that is off for one arm. A
factor belongs to an arm whatever the size of a request, so a fixed cost is spread over the sizes that ran. A change of
the device's pace, the cloud's load, the link or the drafts' luck is the estimators' to explain, not theirs. Three rules
keep them from learning it a second time: a prediction is made with the estimates at its decision, so a known load is in
it; a reply since whose decision an estimate changed (``attribution``) is counted but not learnt from
(``settled=False``); and one reply moves a factor by at most ``MAX_STEP`` times a slow weight, while the estimators
follow in two samples, so a change that slipped through is gone from the next residuals before it weighs. A reply that
took ``EVENT_RATIO`` times what the bare model says, or that part of it, met an event (a radio asleep, a link that was
gone) that no factor explains: it is counted and not learnt from either. ``EVENTS_IN_A_ROW`` of them to the same side
are no events but how it is (a proxy that buffers, a cloud whose account of its times is wrong): their median is learnt
at once. What was not seen for ``KEPT_S`` is forgotten with ``HALF_LIFE_S``, so that an arm given up for its factor is
tried again some day.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from splitglm_core.plan import Arm
from splitglm_partitioner.change import median
from splitglm_partitioner.factors import MAX_FACTOR, ArmFactors
from splitglm_partitioner.observations import ReplyEnded

ALPHA = 1 / 10
# Of the logarithm: a reply that took twice as long as predicted counts as one that took 28 % longer.
MAX_STEP = 0.25
EVENT_RATIO = 2.5
EVENTS_IN_A_ROW = 4
KEPT_S = 600.0
HALF_LIFE_S = 600.0
# Replies whose evidence equals the belief that the model is right.
PRIOR_REPLIES = 4.0
# Predictions and outcomes below are noise of the clock.
LEAST_S = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """How far predictions, as they were stated, missed.

    Attributes:
        count: of pairs of a prediction and what happened.
        mean_abs_pct_error: mean of ``|actual - predicted| / actual``, in percent; 0 without any.
        mean_log_ratio: mean of ``ln(actual / predicted)``: above 0 when things take longer than predicted.
    """

    count: int = 0
    mean_abs_pct_error: float = 0.0
    mean_log_ratio: float = 0.0


class _Factor:
    """One factor's logarithm, and the misses of what was predicted."""

    __slots__ = ("_events", "_level", "_seen_s", "replies", "residuals")

    def __init__(self) -> None:
        self._level, self._seen_s, self.replies, self.residuals = 0.0, 0.0, 0.0, Residuals()
        self._events: list[float] = []  # in a row, to the same side

    def value(self, now_s: float) -> float:
        shrunk = self._level_at(now_s) * self.replies / (self.replies + PRIOR_REPLIES)
        return math.exp(min(max(shrunk, -math.log(MAX_FACTOR)), math.log(MAX_FACTOR)))

    def _level_at(self, now_s: float) -> float:
        level: float = self._level * 0.5 ** (max(0.0, now_s - self._seen_s - KEPT_S) / HALF_LIFE_S)
        return level

    def observe(self, predicted_s: float, actual_s: float, applied: float, learn: bool, now_s: float) -> None:
        if predicted_s < LEAST_S or actual_s < LEAST_S:
            return
        miss = math.log(actual_s / predicted_s)
        old, count = self.residuals, self.residuals.count + 1
        pct = 100.0 * abs(actual_s - predicted_s) / actual_s
        self.residuals = Residuals(
            count=count,
            mean_abs_pct_error=old.mean_abs_pct_error + (pct - old.mean_abs_pct_error) / count,
            mean_log_ratio=old.mean_log_ratio + (miss - old.mean_log_ratio) / count,
        )
        bare_miss = miss + math.log(applied)
        self._level, self._seen_s = self._level_at(now_s), max(self._seen_s, now_s)
        step = bare_miss - self._level
        event = math.log(EVENT_RATIO)
        if abs(bare_miss) > event and abs(step) > event / 2:
            self._event(bare_miss)
            return
        self._events.clear()
        if not learn:
            return
        self.replies += 1
        self._level += max(ALPHA, 1.0 / (self.replies + 1)) * min(max(step, -MAX_STEP), MAX_STEP)
        self._level = min(max(self._level, -math.log(MAX_FACTOR)), math.log(MAX_FACTOR))

    def _event(self, bare_miss: float) -> None:
        """A reply that is far off; ``bare_miss``: of the bare model's prediction."""
        if self._events and (self._events[-1] > self._level) is not (bare_miss > self._level):
            self._events.clear()
        self._events.append(bare_miss)
        if len(self._events) >= EVENTS_IN_A_ROW:
            self._level = min(max(median(self._events), -math.log(MAX_FACTOR)), math.log(MAX_FACTOR))
            self.replies = max(self.replies, EVENTS_IN_A_ROW * PRIOR_REPLIES)
            self._events.clear()


class Calibration:
    """Factors and residuals of every arm."""

    def __init__(self) -> None:
        self._ttft = {arm: _Factor() for arm in Arm}
        self._per_token = {arm: _Factor() for arm in Arm}

    def observe(self, ended: ReplyEnded, *, applied: ArmFactors | None = None, settled: bool = True) -> None:
        """Take one reply.

        Args:
            applied: the factors that its predictions contain, as ``factors`` gave them at the decision; None when they
                are the bare model's.
            settled: nothing that an estimator follows changed since; else the reply is counted and not learnt from.
        """
        arm, outcome = ended.plan.arm, ended.outcome
        applied = applied or ArmFactors(arm=arm)
        ttft, per_token, now_s = self._ttft[arm], self._per_token[arm], ended.at_s
        ttft.observe(ended.predicted_ttft_s, outcome.ttft_s, applied.ttft, settled, now_s)
        if outcome.new_tokens > 1:
            per_token.observe(ended.predicted_per_token_s, outcome.per_token_s, applied.per_token, settled, now_s)

    def factors(self, arm: Arm, now_s: float) -> ArmFactors:
        """What to multiply the model's next prediction for ``arm`` by; 1 before any reply."""
        return ArmFactors(arm=arm, ttft=self._ttft[arm].value(now_s), per_token=self._per_token[arm].value(now_s))

    def learnt(self, now_s: float) -> tuple[ArmFactors, ...]:
        """The factors of the arms of which anything was learnt."""
        known = [arm for arm in Arm if self._ttft[arm].replies or self._per_token[arm].replies]
        return tuple([self.factors(arm, now_s) for arm in known])

    def residuals(self, arm: Arm) -> tuple[Residuals, Residuals]:
        """Of TTFT and of seconds per token, since the beginning."""
        return self._ttft[arm].residuals, self._per_token[arm].residuals
