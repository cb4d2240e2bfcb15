"""What was predicted of every reply and what it took: kept in a ring, told to the advisor, written to the decision log.

Times are counted from when the plan was ready to run, and without what the reader took between two pieces: neither is
the plan's doing. Terms are busy seconds of the whole reply; in a prefill they overlap.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from splitglm_core.plan import Arm
from splitglm_edge.advice import Advice
from splitglm_edge.caches import Sums
from splitglm_edge.decision_log import LINE_VERSION, DecisionLog
from splitglm_edge.stats import Meter, Stats
from splitglm_partitioner.bounds import MAX_SECONDS
from splitglm_partitioner.breakdown import Breakdown
from splitglm_partitioner.decision import Decision
from splitglm_partitioner.observations import Outcome, ReplyEnded

KEPT: Final = 256
MOST_PAUSE_SHARE: Final = 0.1
"""Of a reply: a cloud that goes on by itself hides what a slower reader's pauses cost, so nothing is learnt from it."""
_PLACES: Final = {
    "front_s": ("front",),
    "codec_s": ("encode", "decode"),
    "tail_s": ("tail",),
    "head_s": ("head",),
}
"""Terms that the device measures, and the stages of ``Stats.stage_s`` they are made of."""


class Account(NamedTuple):
    """A reply that ended, however. ``began``: its first decision, another one where it was planned anew."""

    decision: Decision
    stats: Stats
    meter: Meter
    sums: Sums
    began: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One reply, predicted and measured.

    Attributes:
        at_s: when it ended, seconds since 1970.
        predicted, measured: seconds, bytes, joules and price by term, for the tokens that came; a term is in both or in
            neither.
        comparable: it ran to its end under this one decision, at its own speed.
        finish: as in ``Stats``.
    """

    at_s: float
    decision: Decision
    predicted: dict[str, float]
    measured: dict[str, float]
    new_tokens: int
    comparable: bool
    finish: str

    def line(self) -> str:
        """One line of JSON: the decision, reproducible, with both sides of every term. Never text."""
        return json.dumps(
            {
                "version": LINE_VERSION,
                "at_s": round(self.at_s, 3),
                "decision": json.loads(self.decision.log_line()),
                "predicted": self.predicted,
                "measured": self.measured,
                "new_tokens": self.new_tokens,
                "comparable": self.comparable,
                "finish": self.finish,
            },
            separators=(",", ":"),
            allow_nan=False,
        )


class Predictions:
    """The newest ``KEPT`` replies. Thread-safe."""

    def __init__(self, advice: Advice, log: DecisionLog | None = None) -> None:
        self._advice = advice
        self._log = log
        self._ring: deque[Prediction] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def kept(self) -> tuple[Prediction, ...]:
        """Oldest first."""
        with self._lock:
            return tuple(self._ring)

    def ended(self, account: Account, *, genre: str, max_new_tokens: int) -> None:
        """Take a reply; one that ended before its first token measured nothing."""
        decision, stats, meter = account.decision, account.stats, account.meter
        if not meter.tokens:
            return
        outcome, cost = outcome_of(account), decision.breakdown
        measured = measured_terms(outcome, stats, meter)
        expected = decision.situation.request.expected_new_tokens
        predicted = predicted_terms(cost, outcome.new_tokens, expected)
        both = measured.keys() & predicted.keys()
        slow = decision.plan.arm is Arm.CLOUD and meter.paused_s > MOST_PAUSE_SHARE * outcome.total_s
        comparable = stats.finish in ("stop", "length") and account.began is decision and not slow
        prediction = Prediction(
            at_s=time.time(),
            decision=decision,
            predicted={term: predicted[term] for term in sorted(both)},
            measured={term: measured[term] for term in sorted(both)},
            new_tokens=outcome.new_tokens,
            comparable=comparable,
            finish=stats.finish,
        )
        with self._lock:
            self._ring.append(prediction)
        # Also of one that failed or was left: an exploration that ended so has its price too.
        began = account.began
        self._advice.ended(
            began,
            ReplyEnded(
                at_s=self._advice.now_s(),
                plan=began.plan,
                genre=genre,
                max_new_tokens=max_new_tokens,
                # What a cloud states adds up beyond it, and an answer that is there must not fail for that.
                predicted_ttft_s=min(began.breakdown.ttft_s, MAX_SECONDS),
                predicted_per_token_s=min(began.breakdown.per_token_s, MAX_SECONDS),
                outcome=outcome,
                comparable=comparable,
            ),
        )
        if self._log is not None:
            self._log.append(prediction.line())


def outcome_of(account: Account) -> Outcome:
    """What the reply cost. Joules are the stated power times the measured seconds; None where no power is stated.

    The radio's seconds are those from the first upload on, as in what is predicted.
    """
    decision, stats, meter, sums = account.decision, account.stats, account.meter, account.sums
    plan = decision.plan
    ttft_s = max(0.0, meter.first_token_s - meter.prepared_s)
    total_s = max(ttft_s, meter.last_token_s - meter.prepared_s - meter.paused_s)
    tokens = stats.prompt_tokens - stats.kept_tokens + stats.new_tokens - 1
    cloud = decision.situation.cloud
    price: float | None = 0.0
    if plan.arm is not Arm.DEVICE:
        unit = None if cloud is None else cloud.price_per_layer_token
        price = None if unit is None else unit * tokens * (plan.t - plan.s)
    energy_j, power = None, decision.situation.device.power
    if power is not None:
        busy_s = sum(stats.stage_s.get(name, 0.0) for names in _PLACES.values() for name in names)
        energy_j = power.compute_w * busy_s
        if plan.arm is not Arm.DEVICE:
            idle_s = max(0.0, meter.first_upload_s - meter.prepared_s) if meter.first_upload_s else total_s
            energy_j += power.radio_w * max(0.0, total_s - idle_s)
            energy_j += power.uplink_j_per_byte * sums.payload_up + power.downlink_j_per_byte * sums.payload_down
    return Outcome(
        ttft_s=ttft_s,
        total_s=total_s,
        new_tokens=meter.tokens,
        uplink_bytes=max(0, sums.payload_up),
        downlink_bytes=max(0, sums.payload_down),
        energy_j=energy_j,
        price=price,
    )


def measured_terms(outcome: Outcome, stats: Stats, meter: Meter) -> dict[str, float]:
    """What was measured, by the names of the predicted terms."""
    out: dict[str, float] = {"ttft_s": outcome.ttft_s, "total_s": outcome.total_s}
    if outcome.new_tokens > 1:
        out["per_token_s"] = outcome.per_token_s
    for term, stages in _PLACES.items():
        seconds = [stats.stage_s[stage] for stage in stages if stage in stats.stage_s]
        if seconds:
            out[term] = sum(seconds)
    if stats.round_trips:
        out |= {"queue_s": meter.cloud_queue_s, "sweep_s": meter.cloud_sweep_s, "back_s": meter.cloud_compute_s}
        out |= {"uplink_bytes": outcome.uplink_bytes, "downlink_bytes": outcome.downlink_bytes}
    if outcome.energy_j is not None:
        out["energy_j"] = outcome.energy_j
    if outcome.price:
        out["price"] = outcome.price
    return out


def predicted_terms(cost: Breakdown, new_tokens: int, expected_new_tokens: int) -> dict[str, float]:
    """The prediction for an answer of ``new_tokens``: the first token's terms and so many times a further token's.

    Bytes, joules and price are predicted for the expected answer as a whole, so they are there for that length only.
    """
    further = new_tokens - 1
    out: dict[str, float] = {"ttft_s": cost.ttft_s, "total_s": cost.ttft_s + further * cost.per_token_s}
    if further:
        out["per_token_s"] = cost.per_token_s
    first: dict[str, Any] = cost.prefill._asdict()
    step: dict[str, Any] = cost.step._asdict()
    for term, seconds in first.items():
        if seconds is not None:
            out[term] = seconds + further * (step[term] or 0.0)
    if new_tokens == expected_new_tokens:
        whole: dict[str, float | None] = {
            "uplink_bytes": cost.uplink_bytes,
            "downlink_bytes": cost.downlink_bytes,
            "energy_j": cost.energy_j,
            "price": cost.price,
        }
        out |= {term: float(value) for term, value in whole.items() if value is not None}
    return out
