"""A decision as a value: what was chosen, what else was allowed, and why"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from splitglm_core.plan import SplitPlan
from splitglm_partitioner import typed_json
from splitglm_partitioner.breakdown import Breakdown
from splitglm_partitioner.constraints import Exclusion
from splitglm_partitioner.cost import cost_in
from splitglm_partitioner.guidance import Guidance
from splitglm_partitioner.request import Situation

LOG_VERSION = 3
# Plans whose objectives differ by less are a tie: the difference is rounding, not prediction.
TIE_RELATIVE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The best plan of one arm, its predicted cost and its objective value (lower is better)."""

    plan: SplitPlan
    value: float
    situation: Situation = field(repr=False)
    _kept: list[Breakdown] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def breakdown(self) -> Breakdown:
        """The predicted cost, term by term. It is worked out when first asked for: a decision compares values only."""
        if not self._kept:
            self._kept.append(cost_in(self.situation, self.plan))
        return self._kept[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was chosen and why.

    Attributes:
        situation: all inputs of the search.
        chosen: the plan to run.
        runners_up: the best plan of every other arm allowed, best first.
        excluded: the arms that are not allowed, each with its reason.
        why: machine-readable: ``key=value`` pairs joined by ``;``. Keys: ``arm``; ``cut``, the end of the allowed
            range of ``s`` that was chosen (``low``, ``high``, ``interior``, ``only``); ``limited-by``, the constraints
            that narrowed this arm; ``warm``, whether an open session goes on; ``chunk``, where there was a choice;
            ``draft``, drafter and length, where one was taken; ``next`` and ``margin``, the best other arm and how much
            dearer it is.
        guidance: what ``steering`` added to the inputs; None for a plain search.
        notes: what bound the device beforehand, in words (``governor``); the bounds themselves are in ``situation``.
    """

    situation: Situation
    chosen: Choice
    runners_up: tuple[Choice, ...]
    excluded: tuple[Exclusion, ...]
    why: str
    guidance: Guidance | None = None
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> SplitPlan:
        return self.chosen.plan

    @property
    def breakdown(self) -> Breakdown:
        return self.chosen.breakdown

    @property
    def value(self) -> float:
        return self.chosen.value

    @property
    def inputs_digest(self) -> str:
        """SHA-256 of the canonical JSON of all inputs, in hex."""
        return digest_of(self.situation, self.guidance)

    def log_line(self) -> str:
        """One line of JSON from which ``decision_log.replay`` recomputes this decision: sizes and times, never text."""
        line = {
            "version": LOG_VERSION,
            "digest": self.inputs_digest,
            "plan": typed_json.to_plain(self.plan),
            "value": self.value,
            "why": self.why,
            "inputs": typed_json.to_plain(self.situation),
            "guidance": typed_json.to_plain(self.guidance),
            "notes": typed_json.to_plain(self.notes),
        }
        return typed_json.dumps(line)


def digest_of(situation: Situation, guidance: Guidance | None) -> str:
    """SHA-256 of the canonical JSON of all that a decision depends on, in hex."""
    text = typed_json.dumps([typed_json.to_plain(situation), typed_json.to_plain(guidance)])
    return hashlib.sha256(text.encode()).hexdigest()
