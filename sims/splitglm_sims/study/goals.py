"""Whether the judged strategy meets its goals, class by class: computed from the results, never stated by hand.

A row pools the workloads of one class of links under one privacy, seed by seed. It counts only on classes that are
for reporting, and never for a strategy that failed more requests than the one it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np

from splitglm_core.plan import Privacy
from splitglm_sims.links.fitted import Use
from splitglm_sims.study.config import Role
from splitglm_sims.study.regret import SeedTotals, cheapest, regret, versus
from splitglm_sims.study.statistics import Interval
from splitglm_sims.study.store import privacy_word
from splitglm_sims.study.summary import Group, StrategySummary

REGRET_BOUND: Final = 0.05
GUARD_BOUND: Final = 1.05

REGRET: Final = "regret against a per-request clairvoyant choice"
FIXED: Final = "cost over the best fixed arm in hindsight"
GUARD: Final = "cost over the better single side"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One goal on one class.

    Attributes:
        goal: ``REGRET``, ``FIXED`` or ``GUARD``.
        judged: label of the strategy.
        rival: what it is compared with; empty for the clairvoyant.
        measured: with its interval.
        worst_seed: the largest value of a single seed.
        bound: the measured value is to be at most this (below it, for ``FIXED``).
        failed, rival_failed: requests without an answer.
        met: None on a class that is for tuning.
    """

    goal: str
    link: str
    privacy: Privacy | None
    devices: int
    judged: str
    rival: str
    measured: Interval
    worst_seed: float
    bound: float
    failed: int
    rival_failed: int
    met: bool | None


def verdicts(groups: Iterable[Group]) -> tuple[Verdict, ...]:
    """Every goal that the study's strategies and settings allow to judge."""

    def row(group: Group) -> tuple[int, str, str, int]:
        return (order[group.link.name], group.link.name, privacy_word(group.privacy), group.devices)

    every = list(groups)
    order = {name: number for number, name in enumerate(dict.fromkeys(group.link.name for group in every))}
    found: list[Verdict] = []
    for _, members in groupby(sorted(every, key=row), row):
        found += _row(list(members))
    return tuple(sorted(found, key=lambda verdict: (REGRET, FIXED, GUARD).index(verdict.goal)))


@dataclass(frozen=True, slots=True)
class _Pooled:
    """A strategy over all workloads of a class."""

    label: str
    totals: SeedTotals
    failed: int


def _row(members: list[Group]) -> list[Verdict]:
    first = members[0]
    by_role = {role: _pooled(members, role) for role in Role}
    sides = {one.label: one for one in by_role[Role.SIDE]}
    # The two sides alone would be a poor choice of fixed arms to be the best of.
    fixed = sides | {one.label: one for one in by_role[Role.FIXED]} if by_role[Role.FIXED] else {}
    found = []
    for judged in by_role[Role.JUDGED]:
        if judged.totals.best is not None:
            worst = float((judged.totals.value / judged.totals.best).max()) - 1.0
            found.append(_verdict(REGRET, first, judged, None, regret(judged.totals), worst, REGRET_BOUND))
        # Where ids may not go up, "cloud-only" is the nearest plan that is allowed, and no single side.
        guarded = sides if first.privacy is Privacy.OPEN else {}
        for goal, among, bound in ((FIXED, fixed, 1.0), (GUARD, guarded, GUARD_BOUND)):
            rival = cheapest({label: one.totals for label, one in among.items()})
            if rival is not None and len(among) > 1:
                against = versus(judged.totals, rival, among[rival].totals)
                found.append(_verdict(goal, first, judged, among[rival], against.ratio, against.worst_seed, bound))
    return found


def _verdict(
    goal: str, group: Group, judged: _Pooled, rival: _Pooled | None, measured: Interval, worst: float, bound: float
) -> Verdict:
    within = measured.estimate < bound if goal == FIXED else measured.estimate <= bound
    rival_failed = 0 if rival is None else rival.failed
    return Verdict(
        goal=goal,
        link=group.link.name,
        privacy=group.privacy,
        devices=group.devices,
        judged=judged.label,
        rival="" if rival is None else rival.label,
        measured=measured,
        worst_seed=worst,
        bound=bound,
        failed=judged.failed,
        rival_failed=rival_failed,
        met=None if group.link.use is Use.TUNE else bool(within and (rival is None or judged.failed <= rival_failed)),
    )


def _pooled(members: Sequence[Group], role: Role) -> list[_Pooled]:
    """Strategies of a role that ran in every group, their totals added up seed by seed."""
    found = []
    for label in dict.fromkeys(one.label for group in members for one in group.of_role(role)):
        parts = [one for group in members for one in group.strategies if one.label == label]
        if len(parts) == len(members):
            found.append(_Pooled(label, _summed(parts), sum(part.failed for part in parts)))
    return found


def _summed(parts: Sequence[StrategySummary]) -> SeedTotals:
    value = np.sum([part.totals.value for part in parts], axis=0)
    bests = [part.totals.best for part in parts if part.totals.best is not None]
    return SeedTotals(value, np.sum(bests, axis=0) if len(bests) == len(parts) else None)
