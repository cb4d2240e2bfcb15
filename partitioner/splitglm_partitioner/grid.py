"""Plans side by side as arrays, so that all of them are priced by the same few vector operations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from splitglm_core.plan import Arm, Codec, SplitPlan
from splitglm_partitioner.arms import Block, Candidates, make_plan
from splitglm_partitioner.lanes import Lane, lane_of

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Plans as columns. Immutable and shared between decisions.

    Attributes:
        layers: decoder layers of the model.
        s, t: cuts, ``[plans]``.
        lane: index into ``lanes``, ``[plans]``.
        lanes: distinct (arm, codec) pairs.
        arms: half-open column range of each arm present.
        deep_start: first column of the U-shapes with ``t < layers``, which come last.
    """

    layers: int
    s: Indices
    t: Indices
    lane: Indices
    lanes: tuple[Lane, ...]
    arms: tuple[tuple[Arm, int, int], ...]
    deep_start: int

    def plan(self, index: int, chunk_tokens: int, drafter: str = "none", draft_tokens: int = 0) -> SplitPlan:
        """Column ``index`` as a plan."""
        lane = self.lanes[self.lane[index]]
        s, t = int(self.s[index]), int(self.t[index])
        return make_plan(self.layers, lane.arm, s, t, lane.codec or Codec.BF16, chunk_tokens, drafter, draft_tokens)


@lru_cache(maxsize=256)
def column_of(grid: Grid, plan: SplitPlan) -> int | None:
    """The column of ``plan``'s cut, arm and codec in ``grid``, if it is there."""
    for arm, start, stop in grid.arms:
        for index in range(start, stop) if arm is plan.arm else ():
            same_cut = grid.s[index] == plan.s and grid.t[index] == plan.t
            if same_cut and grid.lanes[grid.lane[index]].codec in (None, plan.codec):
                return index
    return None


@lru_cache(maxsize=256)
def grid_of(candidates: Candidates, hidden: int) -> Grid:
    """All plans of ``candidates``."""
    return grid_of_blocks(candidates.layers, hidden, candidates.blocks, candidates.codecs)


@lru_cache(maxsize=256)
def grid_of_blocks(layers: int, hidden: int, blocks: tuple[Block, ...], codecs: tuple[Codec, ...]) -> Grid:
    """All plans of ``blocks``, which are grouped by arm with the U-shapes of ``t == layers`` before the others."""
    lanes: dict[tuple[Arm, Codec | None], Lane] = {}
    s: list[int] = []
    t: list[int] = []
    lane: list[int] = []
    arms: dict[Arm, tuple[int, int]] = {}
    deep_start = -1
    for block in blocks:
        if block.arm is Arm.USHAPE and block.t < layers and deep_start < 0:
            deep_start = len(s)
        arms.setdefault(block.arm, (len(s), len(s)))
        for codec in codecs if block.arm in (Arm.SPLIT, Arm.USHAPE) else (Codec.BF16,):
            made = lane_of(block.arm, codec, hidden)
            lanes.setdefault((made.arm, made.codec), made)
            cuts = range(block.s_start, block.s_stop)
            s.extend(cuts)
            t.extend([block.t] * len(cuts))
            lane.extend([list(lanes).index((made.arm, made.codec))] * len(cuts))
        arms[block.arm] = (arms[block.arm][0], len(s))
    columns = [np.array(values, dtype=np.intp) for values in (s, t, lane)]
    for column in columns:
        column.setflags(write=False)
    return Grid(
        layers=layers,
        s=columns[0],
        t=columns[1],
        lane=columns[2],
        lanes=tuple(lanes.values()),
        arms=tuple((arm, start, stop) for arm, (start, stop) in arms.items()),
        deep_start=deep_start if deep_start >= 0 else len(s),
    )


def grid_of_plan(plan: SplitPlan, hidden: int) -> Grid:
    """A grid of one."""
    return grid_of_blocks(plan.layers, hidden, (Block(plan.arm, plan.t, plan.s, plan.s + 1),), (plan.codec,))
