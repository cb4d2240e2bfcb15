"""From a workload and a seed to the jobs of one device: computed before the run, from the seed alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

import numpy as np

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm
from splitglm_partitioner.bounds import check_count, check_number
from splitglm_sims.load import scenario
from splitglm_sims.load.schedule import arrival_times
from splitglm_sims.workloads.workload import Kind, Workload
from splitglm_sims.world.scene import Job

MAX_JOBS: Final = 2_000_000
_CONVERSATION, _ARRIVALS = 1, 2  # domains of seeds: no stream of draws is used for two things
_FIRST_HORIZON_S: Final = 3600.0
_LONGEST_S: Final = 1e8


def jobs(workload: Workload, seed: int, *, seconds: float | None = None, count: int | None = None) -> tuple[Job, ...]:
    """The jobs that begin within ``seconds``, or else the first ``count``, in order of time.

    A user reads an answer while it comes, thinks and asks again; times are those of a device that answers as fast as
    its user reads, and a slower one begins later (``Job.at_s``). Equal seeds give equal jobs, and those of a shorter
    time are the beginning of those of a longer one.

    Raises:
        InputError: neither or both of ``seconds`` and ``count``, or more than two million jobs.
    """
    check_count("seed", seed, 0, (1 << 63) - 1)
    if (seconds is None) == (count is None):
        raise InputError("state either the seconds or the count of the jobs")
    if seconds is not None:
        check_number("seconds", seconds, 0.0, _LONGEST_S)
        return _within(workload, seed, seconds)
    wanted = count or 0
    check_count("count", wanted, 1, MAX_JOBS)
    horizon_s = _FIRST_HORIZON_S
    while len(found := _within(workload, seed, horizon_s)) < wanted:
        horizon_s *= max(2.0, 1.1 * wanted / max(1, len(found)))
        if horizon_s > _LONGEST_S:
            raise InputError(f"{wanted} jobs do not arrive within {_LONGEST_S:g} s", "raise the workload's rate")
    return found[:wanted]


def _within(workload: Workload, seed: int, seconds: float) -> tuple[Job, ...]:
    found: list[Job] = []
    for conversation in _conversations(workload, seed, seconds):
        found += [job for job in conversation if job.at_s < seconds]
        if len(found) > MAX_JOBS:
            raise InputError(f"the workload has more than {MAX_JOBS} jobs", "shorten it or lower its rate")
    return tuple(sorted(found, key=lambda job: (job.at_s, job.conversation)))


def _conversations(workload: Workload, seed: int, seconds: float) -> Iterator[list[Job]]:
    if workload.users == 0:
        for number, at_s in enumerate(_arrivals(workload, seed, seconds)):
            yield _conversation(workload, _stream(seed, _CONVERSATION, number), number, at_s)[0]
        return
    for user in range(workload.users):
        number, now_s = user, 0.0
        while True:
            rng = _stream(seed, _CONVERSATION, number)
            now_s += workload.pause_s.draw(rng) if workload.pause_s is not None else 0.0
            if now_s >= seconds:
                break
            conversation, now_s = _conversation(workload, rng, number, now_s)
            yield conversation
            number += workload.users


def _conversation(workload: Workload, rng: np.random.Generator, number: int, at_s: float) -> tuple[list[Job], float]:
    """All turns, and when the user is done with the last one."""
    kind = workload.kinds[_pick([kind.share for kind in workload.kinds], rng)]
    privacy = kind.privacy[_pick([item.share for item in kind.privacy], rng)].privacy
    turns = min(kind.max_turns, int(rng.geometric(1.0 / kind.mean_turns)))
    found: list[Job] = []
    cached = 0
    for turn in range(turns):
        bound = kind.max_new_tokens[int(rng.integers(len(kind.max_new_tokens)))]
        added = round(kind.prompt_tokens.draw(rng))
        answer = _answer(kind, added, rng)
        deadline_s = _deadline(kind, rng)
        room = workload.context_tokens - bound - cached
        if turn == 0:
            added = min(kind.system_tokens + added, room)
        elif added > room:
            break
        job = Job(
            at_s=at_s,
            prompt_tokens=cached + added,
            new_tokens=max(1, min(answer, bound)),
            max_new_tokens=bound,
            genre=kind.genre,
            conversation=number,
            turn=turn,
            shared_tokens=cached,
            privacy=privacy,
            deadline_s=deadline_s,
        )
        found.append(job)
        cached = job.prompt_tokens + job.new_tokens
        at_s += job.new_tokens * kind.read_s_per_token
        at_s += kind.think_s.draw(rng) if kind.think_s is not None else 0.0
    return found, at_s


def _pick(weights: list[float], rng: np.random.Generator) -> int:
    """An index, by weight."""
    sums = list(accumulate(weights))
    return min(len(sums) - 1, bisect_right(sums, float(rng.random()) * sums[-1]))


def _answer(kind: Kind, added: int, rng: np.random.Generator) -> int:
    if kind.answer_tokens is not None:
        return round(kind.answer_tokens.draw(rng))
    ratio = kind.answer_per_prompt.draw(rng) if kind.answer_per_prompt is not None else 1.0
    return max(1, round(added * ratio))


def _deadline(kind: Kind, rng: np.random.Generator) -> float | None:
    u = float(rng.random())
    return kind.deadline_s[int(rng.integers(len(kind.deadline_s)))] if u < kind.deadline_share else None


def _arrivals(workload: Workload, seed: int, seconds: float) -> list[float]:
    """Begins of conversations; the processes are those of load runs, told in their words."""
    if seconds <= 0.0:
        return []
    rate_per_s = workload.conversations_per_s
    run = scenario.Scenario(
        name="conversations",
        phases=(scenario.Phase(name="all", seconds=min(seconds, scenario.MAX_SECONDS), rate_per_s=rate_per_s),),
        kinds=(scenario.Kind(name="conversation", arm=Arm.CLOUD),),
        process=workload.process,
        burstiness=workload.burstiness,
        trace_s=workload.trace_s,
    )
    times: list[float] = arrival_times(run, rate_per_s, seconds, _stream(seed, _ARRIVALS, 0)).tolist()
    return times


def _stream(seed: int, domain: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, domain, number])))
