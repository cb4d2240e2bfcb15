"""One device with its link and a cloud that others load too, in virtual time

``run_lone`` is the world in which strategies are compared: many of them, over many seeds, each meeting the same luck.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import simpy

from splitglm_core.errors import InputError
from splitglm_core.plan import SplitPlan
from splitglm_partitioner.observations import Observation, Outcome, ReplyEnded
from splitglm_partitioner.request import Situation
from splitglm_sims.strategies.strategy import Strategy, Task
from splitglm_sims.world.account import Account
from splitglm_sims.world.draws import Draws
from splitglm_sims.world.handset import Handset
from splitglm_sims.world.hindsight import best_of
from splitglm_sims.world.record import Record
from splitglm_sims.world.scene import Scene
from splitglm_sims.world.trial import Trial, candidates_tried, run_trial


def run_lone(scene: Scene, strategy: Strategy, *, compare: bool = False) -> tuple[Record, ...]:
    """Let ``strategy`` plan every job of ``scene``, in order, one at a time.

    Args:
        compare: also find the best plan of each job in the strategy's own state: the link's rest, the open session and
            the time at which it began (``hindsight``). That costs as much as some dozens of further replies per job.

    Raises:
        InputError: a job does not fit the model's positions.
    """
    check_jobs(scene)
    env = simpy.Environment()
    records: list[Record] = []
    env.process(_device(env, Handset(scene), strategy, compare, records))
    env.run()
    return tuple(records)


def check_jobs(scene: Scene) -> None:
    """InputError for a job that does not fit the model."""
    for job in scene.jobs:
        if job.prompt_tokens + job.max_new_tokens > scene.model.max_positions:
            raise InputError(
                f"a job of {job.prompt_tokens} and up to {job.max_new_tokens} tokens exceeds the model's positions",
                "shorten the workload's prompts or answers",
            )


def _device(
    env: simpy.Environment, handset: Handset, strategy: Strategy, compare: bool, records: list[Record]
) -> Generator[simpy.Event, Any, None]:
    for index, job in enumerate(handset.scene.jobs):
        if job.at_s > env.now:
            yield env.timeout(job.at_s - env.now)
        start_s = env.now
        draws, account = handset.draws(index), Account(start_s, told=[])
        situation = handset.situation(index)
        attempt = candidates_tried(handset, index, situation, start_s) if compare else None
        plan, probed_s = decided(handset, strategy, index, situation, account, draws, start_s)
        best_plan, best = None, None
        if attempt is not None:
            best_plan, best = best_of(situation, attempt)
            own = attempt(plan)
            if own.value < best.value:
                best_plan, best = plan, own
        trial = run_trial(
            handset,
            index,
            plan,
            handset.true_situation(situation, probed_s),
            link=handset.link,
            account=account,
            draws=draws,
            now_s=probed_s,
        )
        if trial.end_s > env.now:
            yield env.timeout(trial.end_s - env.now)
        tell(strategy, account)
        records.append(settle(handset, strategy, index, plan, account, trial, start_s, probed_s, best_plan, best))


def decided(
    handset: Handset,
    strategy: Strategy,
    index: int,
    situation: Situation,
    account: Account,
    draws: Draws,
    now_s: float,
) -> tuple[SplitPlan, float]:
    """Probe as the strategy wishes and let it choose: its plan, and when it was made."""
    task = task_of(handset, situation, index, now_s)
    probed_s = handset.probe(strategy.probe(task), account, draws, now_s)
    tell(strategy, account)
    return strategy.choose(_refreshed(handset, strategy, task, situation, index, probed_s)), probed_s


def task_of(handset: Handset, situation: Situation, index: int, now_s: float) -> Task:
    """What a strategy is told of a job, without foresight."""
    return Task(now_s=now_s, situation=situation, genre=handset.scene.jobs[index].genre, vitals=handset.vitals(now_s))


def _refreshed(
    handset: Handset, strategy: Strategy, task: Task, situation: Situation, index: int, now_s: float
) -> Task:
    if not strategy.clairvoyant:
        return task if now_s == task.now_s else task_of(handset, situation, index, now_s)
    attempt = candidates_tried(handset, index, situation, now_s)

    def foresee(plan: SplitPlan) -> Outcome:
        return attempt(plan).judged

    return Task(now_s=now_s, situation=situation, genre=task.genre, vitals=handset.vitals(now_s), foresee=foresee)


def tell(strategy: Strategy, account: Account) -> None:
    """Hand over what was observed, in order of time."""
    if account.told:
        observations: list[Observation] = sorted(account.told, key=lambda observation: observation.at_s)
        account.told.clear()
        for observation in observations:
            strategy.observe(observation)


def settle(
    handset: Handset,
    strategy: Strategy,
    index: int,
    plan: SplitPlan,
    account: Account,
    trial: Trial,
    start_s: float,
    probed_s: float,
    best_plan: SplitPlan | None = None,
    best: Trial | None = None,
) -> Record:
    """The reply has ended: caches, the strategy's last lesson, the record."""
    job = handset.scene.jobs[index]
    device_only = SplitPlan.device_only(plan.layers, chunk_tokens=plan.chunk_tokens)
    handset.keep(index, None if trial.failed else device_only if account.fell_back else plan)
    predicted: tuple[float, float] | None = getattr(strategy, "predicted", None)
    ttft_s, per_token_s = predicted or (0.0, 0.0)
    asked_s = min(probed_s - start_s, trial.outcome.ttft_s)  # rounding must not make it negative
    strategy.observe(
        ReplyEnded(
            at_s=trial.end_s,
            plan=plan,
            genre=job.genre,
            max_new_tokens=job.max_new_tokens,
            predicted_ttft_s=ttft_s,
            predicted_per_token_s=per_token_s,
            outcome=replace(
                trial.outcome,
                ttft_s=trial.outcome.ttft_s - asked_s,
                total_s=trial.outcome.total_s - asked_s,
            ),
            comparable=trial.failed is None and not account.fell_back,
        )
    )
    return Record(
        job=index,
        start_s=start_s,
        probe_s=probed_s - start_s,
        plan=plan,
        outcome=trial.outcome,
        value=trial.value,
        predicted_ttft_s=None if predicted is None or not math.isfinite(ttft_s) else ttft_s,
        predicted_per_token_s=None if predicted is None or not math.isfinite(per_token_s) else per_token_s,
        best_plan=best_plan,
        best_value=None if best is None else best.value,
        failed=trial.failed,
    )
