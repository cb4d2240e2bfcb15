"""What a load run found: figures per phase and per kind of session, whether to believe them, and their table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitglm_sims.load.record import Ended, Health, Outcome, Record, Samples, Stage
from splitglm_sims.load.scenario import Scenario
from splitglm_sims.load.schedule import phase_starts

TIMED = (Stage.CONNECT, Stage.OPEN, Stage.TTFT, Stage.TPOT, Stage.STEP, Stage.REFUSAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A distribution of seconds; NaN where there is no sample."""

    count: int
    p50_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, samples: Samples) -> Spread:
        if not len(samples):
            return cls(count=0, p50_s=math.nan, p99_s=math.nan, max_s=math.nan)
        p50_s, p99_s = np.percentile(samples, [50, 99])
        return cls(count=len(samples), p50_s=float(p50_s), p99_s=float(p99_s), max_s=float(samples.max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counted sessions of one phase, or of one kind in it.

    Attributes:
        name: of the phase or kind.
        offered_per_s: sessions that arrived, per second.
        good_per_s: sessions that ended as planned within the service level, by arrival.
        ok, stopped, refused, failed: sessions by end; the last two by reason.
        answers_per_s: goodput: answers that came in this stretch of time, of sessions that were good in the end; only
            known for a phase as a whole.
        times: by stage.
    """

    name: str
    offered_per_s: float
    good_per_s: float
    ok: int
    stopped: int
    refused: tuple[tuple[str, int], ...]
    failed: tuple[tuple[str, int], ...]
    answers_per_s: float | None
    times: tuple[tuple[Stage, Spread], ...]

    def time(self, stage: Stage) -> Spread:
        return dict(self.times)[stage]

    @property
    def refusals(self) -> int:
        return sum(count for _, count in self.refused)

    @property
    def failures(self) -> int:
        return sum(count for _, count in self.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseResult:
    """A phase as a whole and kind by kind."""

    whole: Figures
    kinds: tuple[Figures, ...]
    recovery_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """A whole run."""

    scenario: Scenario
    capacity_per_s: float | None
    phases: tuple[PhaseResult, ...]
    health: Health
    probe: Record | None
    record: Record

    def phase(self, name: str) -> PhaseResult:
        return next(phase for phase in self.phases if phase.whole.name == name)


def capacity_of(probe: Record, scenario: Scenario) -> float:
    """Sessions per second at which the closed first phase was served; 0 when it was not."""
    seconds = scenario.phases[0].seconds
    good = [line.answers for line in probe.sessions if line.good and line.answers]
    if not good:
        return 0.0
    per_s = probe.good_answers(scenario.warmup_s, seconds) / (seconds - scenario.warmup_s)
    return per_s / (sum(good) / len(good))


def result_of(scenario: Scenario, record: Record, probe: Record | None, capacity_per_s: float | None) -> LoadResult:
    """The figures of a finished run."""
    phases: list[PhaseResult] = []
    for number, start_s in enumerate(phase_starts(scenario)):
        closed = scenario.phases[number].closed_sessions is not None
        seen = probe if closed and probe is not None else record
        phases.append(_phase(scenario, seen, number, start_s, phases))
    health = record.health
    return LoadResult(
        scenario=scenario,
        capacity_per_s=capacity_per_s,
        phases=tuple(phases),
        health=health,
        probe=probe,
        record=record,
    )


def _phase(scenario: Scenario, record: Record, number: int, start_s: float, before: list[PhaseResult]) -> PhaseResult:
    phase = scenario.phases[number]
    counted_s = phase.seconds - scenario.warmup_s
    lines = [line for line in record.sessions if line.phase == number and line.counted]
    answers_per_s = record.good_answers(start_s + scenario.warmup_s, start_s + phase.seconds) / counted_s
    whole = _figures(phase.name, lines, record, number, None, counted_s, answers_per_s)
    kinds = tuple(
        _figures(kind.name, [line for line in lines if line.kind == k], record, number, k, counted_s, None)
        for k, kind in enumerate(scenario.kinds)
    )
    # The first phase with a rate shows what is normal; a phase after a busier one shows the way back to it.
    normal = next((p.whole for p in before if scenario.phases[before.index(p)].closed_sessions is None), None)
    recovers = normal is not None and before[-1].whole.offered_per_s > whole.offered_per_s
    back = (
        recovery_s(record.sessions, number, start_s, 2 * normal.time(Stage.TTFT).p99_s) if recovers and normal else None
    )
    return PhaseResult(whole=whole, kinds=kinds, recovery_s=back)


def recovery_s(sessions: Iterable[Ended], phase: int, start_s: float, limit_s: float) -> float:
    """Seconds from a phase's start to its last arrival that was refused, failed, or waited longer than ``limit_s``."""
    bad = [
        line.at_s - start_s
        for line in sessions
        if line.phase == phase and (line.outcome in (Outcome.REFUSED, Outcome.FAILED) or line.ttft_s > limit_s)
    ]
    return max(bad, default=0.0)


def _figures(
    name: str,
    lines: list[Ended],
    record: Record,
    phase: int,
    kind: int | None,
    seconds: float,
    answers_per_s: float | None,
) -> Figures:
    def reasons(outcome: Outcome) -> tuple[tuple[str, int], ...]:
        found = [line.reason for line in lines if line.outcome is outcome]
        return tuple((reason, found.count(reason)) for reason in sorted(set(found)))

    return Figures(
        name=name,
        offered_per_s=len(lines) / seconds,
        good_per_s=sum(line.good for line in lines) / seconds,
        ok=sum(line.outcome is Outcome.OK for line in lines),
        stopped=sum(line.outcome is Outcome.STOPPED for line in lines),
        refused=reasons(Outcome.REFUSED),
        failed=reasons(Outcome.FAILED),
        answers_per_s=answers_per_s,
        times=tuple((stage, Spread.of(record.samples(stage, phase=phase, kind=kind))) for stage in TIMED),
    )


HEADER = (
    "phase",
    "offered/s",
    "good/s",
    "answers/s",
    "ok",
    "stopped",
    "refused",
    "failed",
    "TTFT p50/p99 ms",
    "TPOT p50/p99 ms",
    "step p50/p99 ms",
    "refusal p50/p99 ms",
    "recovery s",
)


def table(result: LoadResult) -> list[list[str]]:
    """Rows below ``HEADER``: each phase, and under it its kinds where there are several."""
    rows = []
    for phase in result.phases:
        rows.append(_row(phase.whole, phase.recovery_s))
        if len(phase.kinds) > 1:
            rows += [["- " + row[0], *row[1:]] for row in (_row(kind, None) for kind in phase.kinds)]
    return rows


def verdict(result: LoadResult) -> str:
    """One line: lag and CPU of the generators, and whether the figures count."""
    health = result.health
    facts = f"generator lag p99 {1e3 * health.lag_p99_s:.2f} ms, CPU {100 * health.cpu_share:.0f} %"
    return f"VOID: {health.void}" if health.void else f"valid: {facts}"


def to_json(result: LoadResult) -> dict[str, Any]:
    """The figures as plain values; what has no sample is null."""
    return {
        "scenario": result.scenario.name,
        "capacity_per_s": result.capacity_per_s,
        "void": result.health.void or None,
        "generator_lag_p99_s": result.health.lag_p99_s,
        "generator_cpu_share": result.health.cpu_share,
        "phases": [
            _plain(phase.whole) | {"recovery_s": phase.recovery_s, "kinds": [_plain(kind) for kind in phase.kinds]}
            for phase in result.phases
        ],
    }


def _plain(figures: Figures) -> dict[str, Any]:
    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "name": figures.name,
        "offered_per_s": figures.offered_per_s,
        "good_per_s": figures.good_per_s,
        "answers_per_s": figures.answers_per_s,
        "ok": figures.ok,
        "stopped": figures.stopped,
        "refused": dict(figures.refused),
        "failed": dict(figures.failed),
        **{
            stage.value: {
                "count": spread.count,
                "p50_s": known(spread.p50_s),
                "p99_s": known(spread.p99_s),
                "max_s": known(spread.max_s),
            }
            for stage, spread in figures.times
        },
    }


def _row(figures: Figures, back_s: float | None) -> list[str]:
    def times(stage: Stage) -> str:
        spread = figures.time(stage)
        return f"{1e3 * spread.p50_s:.1f} / {1e3 * spread.p99_s:.1f}" if spread.count else "-"

    def reasons(found: tuple[tuple[str, int], ...]) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in found) or "0"

    return [
        figures.name,
        f"{figures.offered_per_s:.2f}",
        f"{figures.good_per_s:.2f}",
        "" if figures.answers_per_s is None else f"{figures.answers_per_s:.1f}",
        str(figures.ok),
        str(figures.stopped),
        reasons(figures.refused),
        reasons(figures.failed),
        *(times(stage) for stage in (Stage.TTFT, Stage.TPOT, Stage.STEP, Stage.REFUSAL)),
        "-" if back_s is None else f"{back_s:.1f}",
    ]
