"""Decode steps to choose from: one token per round, or some drafted tokens verified in one round.

A round with ``k`` drafted tokens runs ``k + 1`` positions through every place and is expected to bring ``1 + the sum of
the first k survival chances`` tokens (Leviathan et al. 2023 for independent chances). What it costs per token is its
cost over that number, so draft length and cut are chosen together; ``k = 0`` is always among the choices, hence no
draft is taken that costs more than it brings.
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
    """``draft_tokens`` by ``drafter``; ``"none"`` and 0 for decoding token by token."""

    drafter: str
    draft_tokens: int
    in_cloud: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rounds:
    """The decode steps of a decision.

    Attributes:
        choices: decoding token by token first when it is there, then by drafter and draft length.
        per_token: positions per expected token, ``[rounds]``.
        amounts: per expected token, ``[rounds, quantities]``.
        barred: 0.0, or infinite where a plan cannot use a round, ``[rounds, plans]``; None when nothing is barred.
        alone: indices of the rounds under which a cloud that samples and embeds decodes by itself.
    """

    choices: tuple[Round, ...]
    per_token: Seconds
    amounts: Seconds
    barred: Seconds | None
    alone: list[int]

    @property
    def alone_amounts(self) -> Seconds:
        """``amounts`` of those, ``[alone, quantities]``."""
        return self.amounts if len(self.alone) == len(self.amounts) else self.amounts[self.alone]


class _Use(NamedTuple):
    """What of a drafter does not change with its statistics, and which draft lengths are asked for."""

    name: str
    arms: tuple[Arm, ...]
    front_layers: int
    shares_front: bool
    in_cloud: bool
    lengths: range


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    """What of ``Rounds`` does not change with statistics, link and context.

    Attributes:
        drafted: drafted positions, ``[rounds]``.
        amounts: per round, ``[rounds, quantities]``.
        one_for_all: seconds of the first layers, which drafting ran already, for one position less those for all;
            ``[rounds]``.
        shared_layers: those layers times drafted positions, and ``shared``: drafted positions that share them.
    """

    choices: tuple[Round, ...]
    drafted: Seconds
    amounts: Seconds
    one_for_all: Seconds
    shared_layers: Seconds
    shared: Seconds
    barred: Seconds | None
    alone: list[int]


def rounds_of(basis: Basis, situation: Situation) -> Rounds:
    """No draft, and every length of every drafter."""
    drafts = situation.drafts
    uses = [_use(drafter, range(1, len(drafter.survival) + 1)) for drafter in drafts]
    tokens, seconds = [1.0], [0.0]
    for drafter in drafts:
        kept = 1.0
        for survives in drafter.survival:
            kept += survives
            tokens.append(kept)
        seconds += [drafter.s_per_token] * len(drafter.survival)
    return _rounds(_shape(basis, True, tuple(uses)), basis, situation, tokens, seconds)


def rounds_of_plan(basis: Basis, plan: SplitPlan, situation: Situation) -> Rounds:
    """The one round that ``plan`` states.

    Raises:
        InputError: nothing is known of its drafter, or the drafter cannot serve this plan.
    """
    length = plan.draft_tokens
    if length == 0:
        return _rounds(_shape(basis, True, ()), basis, situation, [1.0], [0.0])
    drafter = next((entry for entry in situation.drafts if entry.name == plan.drafter), None)
    if drafter is None:
        raise InputError(
            f"a plan with the drafter {plan.drafter} cannot be priced without its acceptance statistics",
            "set draft_tokens=0",
        )
    if length > len(drafter.survival):
        raise InputError(f"of the drafter {plan.drafter} at most {len(drafter.survival)} tokens per round are known")
    if plan.arm not in drafter.arms or plan.s < drafter.front_layers:
        raise InputError(f"the drafter {plan.drafter} cannot serve the plan {plan}")
    shape = _shape(basis, False, (_use(drafter, range(length, length + 1)),))
    return _rounds(shape, basis, situation, [drafter.tokens_per_round(length)], [drafter.s_per_token])


def _use(drafter: DraftStatistics, lengths: range) -> _Use:
    return _Use(drafter.name, drafter.arms, drafter.front_layers, drafter.shares_front, drafter.in_cloud, lengths)


def _rounds(shape: _Shape, basis: Basis, situation: Situation, tokens: list[float], seconds: list[float]) -> Rounds:
    """``shape`` with the expected ``tokens`` of each round and the ``seconds`` to draft one token."""
    if len(tokens) == 1 and not shape.choices[0].draft_tokens:
        return Rounds(shape.choices, np.ones(1), shape.amounts, None, shape.alone)
    context_tokens, of = situation.request.mean_context_tokens, basis.layout.of
    scale = 1.0 / np.array(tokens)
    amounts = shape.amounts * scale[:, None]
    for place, times in (("front_row", basis.device), ("tail_row", basis.device), ("back_row", basis.cloud)):
        if times is not None and times.prefill_s_per_token_per_1k_context is not None:
            amounts[:, of[place]] *= context_tokens
    amounts[:, of["draft"].start] = shape.drafted * scale * seconds
    if shape.shared.any():
        growth = (basis.device.prefill_s_per_token_per_1k_context or 0.0) / 1000 * context_tokens
        saved = shape.shared * situation.device.active.embed_s + shape.shared_layers * growth
        amounts[:, of["shared"].start] = (shape.one_for_all - saved) * scale
    return Rounds(shape.choices, (shape.drafted + 1.0) * scale, amounts, shape.barred, shape.alone)


@lru_cache(maxsize=128)
def _shape(basis: Basis, plain: bool, uses: tuple[_Use, ...]) -> _Shape:
    """Decoding token by token if ``plain``, and the lengths of each of ``uses``."""
    pairs = [(use, length) for use in uses for length in use.lengths]
    choices = [Round("none", 0, False)] if plain else []
    choices += [Round(use.name, length, use.in_cloud) for use, length in pairs]
    drafted = [choice.draft_tokens for choice in choices]
    skipped = len(choices) - len(pairs)
    saving = [_one_for_all(basis, use.front_layers, length + 1) if use.shares_front else 0.0 for use, length in pairs]
    shared = [length if use.shares_front else 0 for use, length in pairs]
    layers = [length * use.front_layers if use.shares_front else 0 for use, length in pairs]
    front = [0.0] * skipped
    barred = None
    if uses:
        barred = np.array([np.zeros(len(basis.grid.s))] * skipped + [_bars(basis, use) for use, _ in pairs])
        barred.setflags(write=False)
    return _Shape(
        choices=tuple(choices),
        drafted=np.array(drafted, dtype=np.float64),
        amounts=round_amounts(basis.layout, basis.device, basis.cloud, max(drafted) + 1)[drafted],
        one_for_all=np.array(front + saving),
        shared_layers=np.array(front + layers),
        shared=np.array(front + shared),
        barred=barred,
        alone=[i for i, choice in enumerate(choices) if choice.in_cloud or not choice.draft_tokens],
    )


def _one_for_all(basis: Basis, depth: int, rows: int) -> float:
    points = basis.device.points[:, min(depth, basis.grid.layers)]
    return float(np.subtract(basis.device.weights(1), basis.device.weights(rows)) @ points)


def _bars(basis: Basis, use: _Use) -> Seconds:
    """Infinite for the plans that the drafter cannot serve, ``[plans]``."""
    grid = basis.grid
    out = np.where(grid.s < use.front_layers, np.inf, 0.0)
    for arm, start, stop in grid.arms:
        if arm not in use.arms:
            out[start:stop] = np.inf
    return out
