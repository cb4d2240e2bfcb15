"""What predictions miss after all that is measured: one factor per arm for TTFT and one for seconds per token.

The factors stand for what the model leaves out and no estimator follows, such as a profile that is off for one arm. A
factor belongs to an arm whatever the size of a request, so a fixed cost is spread over the sizes that ran. A change of
the device's pace, the cloud's load, the link or the drafts' luck is the estimators' to explain, not theirs. Three rules
keep them from learning it a second time: a prediction is made with the estimates at its decision, so a known load is in
it; a reply since whose decision an estimate changed (``attribution``) is counted but not learnt from
(``settled=False``); and one reply moves a factor by at most ``MAX_STEP`` times a slow weight, while the estimators
follow in two samples, so a change that slipped through is gone from the next residuals before it weighs. A reply that
took ``EVENT_RATIO`` times what the bare model says, or that part of it, met an event (a radio asleep, a link that was
gone) that no factor explains: it is counted and not learnt from either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from splitglm_core.plan import Arm
from splitglm_partitioner.factors import MAX_FACTOR, ArmFactors
from splitglm_partitioner.observations import ReplyEnded

ALPHA = 1 / 10
# Of the logarithm: a reply that took twice as long as predicted counts as one that took 28 % longer.
MAX_STEP = 0.25
EVENT_RATIO = 2.5
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

    __slots__ = ("_level", "replies", "residuals")

    def __init__(self) -> None:
        self._level, self.replies, self.residuals = 0.0, 0, Residuals()

    @property
    def value(self) -> float:
        shrunk = self._level * self.replies / (self.replies + PRIOR_REPLIES)
        return math.exp(min(max(shrunk, -math.log(MAX_FACTOR)), math.log(MAX_FACTOR)))

    def observe(self, predicted_s: float, actual_s: float, applied: float, learn: bool) -> None:
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
        if not learn or abs(bare_miss) > math.log(EVENT_RATIO):
            return
        self.replies += 1
        step = bare_miss - self._level
        self._level += max(ALPHA, 1.0 / (self.replies + 1)) * min(max(step, -MAX_STEP), MAX_STEP)
        self._level = min(max(self._level, -math.log(MAX_FACTOR)), math.log(MAX_FACTOR))


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
        self._ttft[arm].observe(ended.predicted_ttft_s, outcome.ttft_s, applied.ttft, settled)
        if outcome.new_tokens > 1:
            self._per_token[arm].observe(ended.predicted_per_token_s, outcome.per_token_s, applied.per_token, settled)

    def factors(self, arm: Arm) -> ArmFactors:
        """What to multiply the model's next prediction for ``arm`` by; 1 before any reply."""
        return ArmFactors(arm=arm, ttft=self._ttft[arm].value, per_token=self._per_token[arm].value)

    def learnt(self) -> tuple[ArmFactors, ...]:
        """The factors of the arms of which anything was learnt."""
        return tuple([self.factors(arm) for arm in Arm if self._ttft[arm].replies or self._per_token[arm].replies])

    def residuals(self, arm: Arm) -> tuple[Residuals, Residuals]:
        """Of TTFT and of seconds per token, since the beginning."""
        return self._ttft[arm].residuals, self._per_token[arm].residuals
