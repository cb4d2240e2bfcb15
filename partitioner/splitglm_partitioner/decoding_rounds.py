"""Decode steps to choose from: one token per round, or some drafted tokens verified in one round.

A round with ``k`` drafted tokens runs ``k + 1`` positions through every place and is expected to bring ``1 + the sum of
the first k survival chances`` tokens (Leviathan et al. 2023 for independent chances). What it costs per token is its
cost over that number, so draft length and cut are chosen together; ``k = 0`` is always among the choices, hence no draft
is taken that costs more than it brings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_partitioner.basis import Basis, round_amounts
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.layer_times import Seconds
from splitglm_partitioner.request import Situation


class Round(NamedTuple):
    """``draft_tokens`` by ``drafter``; None and 0 for decoding token by token."""

    drafter: DraftStatistics | None
    draft_tokens: int
    tokens: float

    @property
    def name(self) -> str:
        return "none" if self.drafter is None else self.drafter.name

    @property
    def in_cloud(self) -> bool:
        return self.drafter is not None and self.drafter.in_cloud


PLAIN = Round(None, 0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Rounds:
    """The decode steps of a decision.

    Attributes:
        choices: ``PLAIN`` first when it is there, then by drafter and draft length.
        per_token: positions per expected token, ``[rounds]``.
        amounts: per expected token, ``[rounds, quantities]``.
        barred: 0.0, or infinite where a plan cannot use a round, ``[rounds, plans]``; None when nothing is barred.
        alone: indices of the rounds under which a cloud that samples and embeds decodes by itself.
    """

    choices: tuple[Round, ...]
    per_token: Seconds
    amounts: Seconds
    barred: Seconds | None
    alone: tuple[int, ...]


def rounds_of(basis: Basis, situation: Situation) -> Rounds:
    """No draft, and every length of every drafter."""
    choices = [PLAIN]
    for drafter in situation.drafts:
        tokens = 1.0
        for length, survives in enumerate(drafter.survival, 1):
            tokens += survives
            choices.append(Round(drafter, length, tokens))
    return _rounds(basis, tuple(choices), situation)


def round_of_plan(plan: SplitPlan, drafts: tuple[DraftStatistics, ...]) -> Round:
    """The round that ``plan`` states.

    Raises:
        InputError: nothing is known of its drafter, or the drafter cannot serve this plan.
    """
    if plan.draft_tokens == 0:
        return PLAIN
    drafter = next((entry for entry in drafts if entry.name == plan.drafter), None)
    if drafter is None:
        raise InputError(
            f"a plan with the drafter {plan.drafter} cannot be priced without its acceptance statistics",
            "set draft_tokens=0",
        )
    if plan.draft_tokens > len(drafter.survival):
        raise InputError(f"of the drafter {plan.drafter} at most {len(drafter.survival)} tokens per round are known")
    if plan.arm not in drafter.arms or plan.s < drafter.front_layers:
        raise InputError(f"the drafter {plan.drafter} cannot serve the plan {plan}")
    return Round(drafter, plan.draft_tokens, drafter.tokens_per_round(plan.draft_tokens))


def rounds_of_plan(basis: Basis, plan: SplitPlan, situation: Situation) -> Rounds:
    """The one round of ``plan``; raises what ``round_of_plan`` raises."""
    return _rounds(basis, (round_of_plan(plan, situation.drafts),), situation)


def _rounds(basis: Basis, choices: tuple[Round, ...], situation: Situation) -> Rounds:
    rows = [choice.draft_tokens + 1 for choice in choices]
    amounts = round_amounts(basis, max(rows))
    of, drafted = basis.layout.of, len(rows) > 1 or rows[0] > 1
    if not drafted:
        return Rounds(choices, np.ones(1), amounts[:1], None, (0,))
    context_tokens = situation.request.mean_context_tokens
    amounts = amounts.take([count - 1 for count in rows], axis=0)
    for place, times in (("front_row", basis.device), ("tail_row", basis.device), ("back_row", basis.cloud)):
        if times is not None and times.prefill_s_per_token_per_1k_context is not None:
            amounts[:, of[place]] *= context_tokens
    shared = [_shared_s(basis, choice, situation, context_tokens) for choice in choices]
    drafting = [0.0 if one.drafter is None else one.draft_tokens * one.drafter.s_per_token for one in choices]
    amounts[:, of["draft"].start] = drafting
    amounts[:, of["shared"].start] = shared
    scale = np.array([1.0 / choice.tokens for choice in choices])
    amounts *= scale[:, None]
    kinds = tuple([(c.drafter.arms, c.drafter.front_layers) if c.drafter is not None else None for c in choices])
    alone = tuple([i for i, choice in enumerate(choices) if choice.drafter is None or choice.drafter.in_cloud])
    return Rounds(choices, scale * rows, amounts, _barred(basis, kinds), alone)


def _shared_s(basis: Basis, choice: Round, situation: Situation, context_tokens: float) -> float:
    """What verification saves where drafting ran the first front layers for the drafted tokens already; <= 0."""
    drafter, length = choice.drafter, choice.draft_tokens
    if drafter is None or not drafter.shares_front:
        return 0.0
    growth = (basis.device.prefill_s_per_token_per_1k_context or 0.0) / 1000 * context_tokens
    saved = length * (situation.device.active.embed_s + drafter.front_layers * growth)
    return _one_for_all(basis, drafter.front_layers, length + 1) - saved


@lru_cache(maxsize=1024)
def _one_for_all(basis: Basis, depth: int, rows: int) -> float:
    """Seconds of the first ``depth`` layers for one position, less those for ``rows``, from an empty cache."""
    points = basis.device.points[:, min(depth, basis.grid.layers)]
    return float(np.subtract(basis.device.weights(1), basis.device.weights(rows)) @ points)


@lru_cache(maxsize=256)
def _barred(basis: Basis, kinds: tuple[tuple[tuple[Arm, ...], int] | None, ...]) -> Seconds:
    grid = basis.grid
    out = np.zeros((len(kinds), len(grid.s)))
    for row, kind in zip(out, kinds, strict=True):
        if kind is not None:
            arms, front_layers = kind
            row[grid.s < front_layers] = np.inf
            for arm, start, stop in grid.arms:
                if arm not in arms:
                    row[start:stop] = np.inf
    out.setflags(write=False)
    return out
