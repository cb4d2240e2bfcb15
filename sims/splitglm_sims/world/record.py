"""What a simulated request came to."""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_core.plan import SplitPlan
from splitglm_partitioner.observations import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One job under one strategy.

    Attributes:
        job: its index in the scene.
        start_s: when the device began it; ``at_s`` or later.
        probe_s: of ``outcome.ttft_s`` and ``outcome.total_s``, what the strategy spent on probing.
        plan, outcome: what ran and what it came to.
        value: the scene's objective of ``outcome`` (lower is better).
        predicted_ttft_s, predicted_per_token_s: by a strategy that predicts; else None.
        best_plan, best_value: what would have been best at ``start_s`` in this strategy's own state, probes not
            counted; None when the run did not look.
        failed: why it has no answer; ``outcome`` is then what was spent until that was known.
    """

    job: int
    start_s: float
    probe_s: float
    plan: SplitPlan
    outcome: Outcome
    value: float
    predicted_ttft_s: float | None = None
    predicted_per_token_s: float | None = None
    best_plan: SplitPlan | None = None
    best_value: float | None = None
    failed: str | None = None
