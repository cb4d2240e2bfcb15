"""When sessions arrive and what each of them does: computed before the run, from the seed alone.

Pure. Arrival times and the sessions' own draws come from separate streams of random numbers, so session ``i`` does the
same under every arrival process, rate and number of generators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, HeadSide, SplitPlan
from splitglm_sims.load.scenario import Kind, Phase, Process, Scenario

MAX_ARRIVALS: Final = 1_000_000
_TIMES: Final = 1 << 62  # keeps the seeds of arrival times apart from those of sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """One session.

    Attributes:
        index: position in the schedule.
        phase, kind: indices into the scenario.
        at_s: intended start from the start of the run.
        counted: False during a phase's warm-up.
        tenant: which of the kind's devices it is of.
        plan: cut, head side and codec.
        prompt_rows, tokens: as in ``Kind``.
        think_s: pauses before the second and every later answer's step.
        stop_after: answers after which the session ends early; None: it runs to its end.
        vanishes: it ends early by breaking the connection, not by saying so.
        slow_read_s: pause of reading after the first answer.
        leaks: it is never closed.
    """

    index: int
    phase: int
    kind: int
    at_s: float
    counted: bool
    tenant: int
    plan: SplitPlan
    prompt_rows: int
    tokens: int
    think_s: tuple[float, ...]
    stop_after: int | None
    vanishes: bool
    slow_read_s: float
    leaks: bool

    @property
    def own_stream(self) -> bool:
        """A device that vanishes or does not read must not take other sessions with it."""
        return self.vanishes or self.slow_read_s > 0.0


def phase_starts(scenario: Scenario) -> tuple[float, ...]:
    """Seconds from the start of the run to each phase with a rate; the probe is a run of its own and has 0."""
    starts, now_s = [], 0.0
    for phase in scenario.phases:
        starts.append(0.0 if phase.closed_sessions is not None else now_s)
        now_s += 0.0 if phase.closed_sessions is not None else phase.seconds
    return tuple(starts)


def schedule(scenario: Scenario, *, layers: int, capacity_per_s: float | None = None) -> tuple[SessionPlan, ...]:
    """Every session of the phases that have a rate, in order of arrival.

    Args:
        layers: of the model.
        capacity_per_s: what the probe found; needed where a phase is a multiple of it.

    Raises:
        InputError: more than a million arrivals, or a rate that depends on an unknown capacity.
    """
    plans: list[SessionPlan] = []
    for number, (phase, start_s) in enumerate(zip(scenario.phases, phase_starts(scenario), strict=True)):
        if phase.closed_sessions is not None:
            continue
        rate = _rate(phase, capacity_per_s)
        rng = np.random.default_rng([_TIMES, scenario.seed, number])
        for at_s in arrival_times(scenario, rate, phase.seconds, rng):
            if len(plans) >= MAX_ARRIVALS:
                raise InputError(f"the scenario has more than {MAX_ARRIVALS} arrivals", "lower its rate or length")
            counted = bool(at_s >= scenario.warmup_s)
            plans.append(
                draw_session(scenario, len(plans), layers, phase=number, at_s=float(start_s + at_s), counted=counted)
            )
    return tuple(plans)


def arrival_times(
    scenario: Scenario, rate_per_s: float, seconds: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Ascending times in ``[0, seconds)``."""
    if scenario.process is Process.TRACE:
        trace = np.array(scenario.trace_s)
        rounds = int(seconds // trace[-1]) + 1
        if rounds * len(trace) > 2 * MAX_ARRIVALS:
            raise InputError(f"the trace fills the phase with more than {MAX_ARRIVALS} arrivals")
        repeated: NDArray[np.float64] = (np.arange(rounds)[:, None] * trace[-1] + trace).ravel()
        return repeated[: int(np.searchsorted(repeated, seconds))]
    if rate_per_s * seconds > MAX_ARRIVALS:
        raise InputError(f"a phase has more than {MAX_ARRIVALS} arrivals", "lower its rate or length")
    if rate_per_s <= 0.0:
        return np.empty(0)
    if scenario.process is Process.CONSTANT:
        return np.arange(int(np.ceil(rate_per_s * seconds)), dtype=np.float64) / rate_per_s
    shape = scenario.burstiness if scenario.process is Process.GAMMA else 1.0
    chunks, end_s = [], 0.0
    while end_s < seconds:
        gaps = rng.gamma(shape, 1.0 / (shape * rate_per_s), size=1024)
        chunks.append(end_s + np.cumsum(gaps))
        end_s = float(chunks[-1][-1])
    times: NDArray[np.float64] = np.concatenate(chunks)
    return times[: int(np.searchsorted(times, seconds))]


def draw_session(
    scenario: Scenario, index: int, layers: int, *, phase: int, at_s: float, counted: bool = True
) -> SessionPlan:
    """What session ``index`` does; depends on seed, mix, index and layers only."""
    if layers < 2:
        raise InputError("a model of one layer has no cut")
    rng = np.random.default_rng([scenario.seed, index])
    shares = np.array([kind.share for kind in scenario.kinds])
    number = int(rng.choice(len(shares), p=shares / shares.sum()))
    kind = scenario.kinds[number]
    plan = _draw_plan(kind, layers, rng)
    rows, tokens = int(rng.integers(*kind.prompt_rows)), int(rng.integers(*kind.tokens))
    fate = float(rng.random())
    vanishes = fate < kind.disconnect_chance
    stops = vanishes or fate < kind.disconnect_chance + kind.cancel_chance
    stop_after = int(rng.integers(0, tokens)) if stops else None
    slow_read_s = kind.slow_read_s if rng.random() < kind.slow_chance else 0.0
    leaks = bool(rng.random() < kind.leak_chance)
    tenant = int(rng.integers(kind.tenants))
    pauses = 0 if kind.arm is Arm.CLOUD or kind.think_s == 0.0 else tokens - 1
    return SessionPlan(
        index=index,
        phase=phase,
        kind=number,
        at_s=at_s,
        counted=counted,
        tenant=tenant,
        plan=plan,
        prompt_rows=rows,
        tokens=tokens,
        think_s=tuple(rng.exponential(kind.think_s, pauses).tolist()),
        stop_after=stop_after,
        vanishes=vanishes,
        slow_read_s=slow_read_s,
        leaks=leaks,
    )


def _draw_plan(kind: Kind, layers: int, rng: np.random.Generator) -> SplitPlan:
    low, high = (int(np.clip(round(bound * layers), 1, layers - 1)) for bound in kind.cut)
    s = int(rng.integers(low, high + 1))
    t = int(rng.integers(s + 1, layers + 1))
    if kind.arm is Arm.CLOUD:
        return SplitPlan.cloud_only(layers, chunk_tokens=kind.chunk_rows)
    ushape = kind.arm is Arm.USHAPE
    head = HeadSide.DEVICE if ushape else HeadSide.CLOUD
    end = t if ushape else layers
    return SplitPlan(layers=layers, s=s, t=end, head=head, codec=kind.codec, chunk_tokens=kind.chunk_rows)


def _rate(phase: Phase, capacity_per_s: float | None) -> float:
    if phase.times_capacity is None:
        return phase.rate_per_s or 0.0
    if capacity_per_s is None:
        raise InputError(f"phase {phase.name!r} is a multiple of a capacity that nobody has measured")
    return phase.times_capacity * capacity_per_s
