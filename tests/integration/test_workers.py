"""Engine workers, really killed and stopped in the middle of replies: no stream breaks, no token is lost or changed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glm_factory import write_tiny_checkpoint
from running_cloud import RunningCloud, open_agent, running_cloud

from splitglm_core.plan import Arm, Codec, Privacy
from splitglm_core.sampling import SamplingParams
from splitglm_edge import Agent, Generation
from splitglm_partitioner.request import Fixed

NEW = 200
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, seed=5, frequency_penalty=0.2)
CUTS = {
    "cloud": Fixed(arm=Arm.CLOUD),
    "split": Fixed(arm=Arm.SPLIT, s=2),
    "ushape": Fixed(arm=Arm.USHAPE, s=2, t=4),
}
PROMPT = [int(i) for i in np.random.default_rng(4).integers(0, 256, 30)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("workers")
    write_tiny_checkpoint(home / "model", layers=5)
    return home


@pytest.fixture(scope="module")
def cloud(home: Path) -> Iterator[RunningCloud]:
    with running_cloud(home / "model", home, executor="process", workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def agent(home: Path, cloud: RunningCloud) -> Iterator[Agent]:
    with open_agent(home / "model", home, cloud) as one:
        yield one


def reply(agent: Agent, fixed: Fixed, prompt: list[int], new: int = NEW, **options: Any) -> Generation:
    return agent.generate(
        prompt, max_tokens=new, sampling=SAMPLED, fixed=fixed, codecs=(Codec.FP32,), privacy=Privacy.OPEN,
        ignore_eos=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def truth(home: Path) -> list[list[int]]:
    """Undisturbed replies to six prompts. In fp32 they are the same in every arm (test_pairs)."""
    with open_agent(home / "model", home) as alone:
        said = [reply(alone, Fixed(arm=Arm.DEVICE), [*PROMPT, last]) for last in range(6)]
        return [generation.token_ids for generation in said if generation.result()]


def pids(cloud: RunningCloud) -> list[int]:
    return [worker.pid for worker in cloud.server.executor.workers() if worker.pid]


def unbroken(generation: Generation) -> bool:
    stats = generation.stats
    return stats is not None and stats.reconnects == 0 and not stats.fallbacks


ENDS = [(arm, signal.SIGKILL) for arm in CUTS] + [("split", signal.SIGSTOP)]
MORE = [pytest.param(arm, signal.SIGSTOP, marks=pytest.mark.slow) for arm in ("cloud", "ushape")]


@pytest.mark.parametrize(("arm", "end"), [*ENDS, *MORE])
def test_a_worker_that_ends_under_load_breaks_no_stream_and_changes_no_token(
    cloud: RunningCloud, agent: Agent, truth: list[list[int]], arm: str, end: signal.Signals
) -> None:
    """C1, C3: six replies at once on two workers, both of which end while they compute."""
    generations = [reply(agent, CUTS[arm], [*PROMPT, last]) for last in range(6)]
    with ThreadPoolExecutor(6) as threads:
        for _ in range(5):
            for generation in generations:
                next(generation)
        results = [threads.submit(generation.result) for generation in generations]
        for pid in pids(cloud):
            os.kill(pid, end)
        for result in results:
            result.result(60)
    assert [generation.token_ids for generation in generations] == truth
    assert all(unbroken(generation) for generation in generations)
    cloud.until(lambda: cloud.server.executor.ready and len(pids(cloud)) == 2)


def test_the_next_turn_after_a_lost_worker_needs_nothing_from_the_device_that_it_has_sent(
    cloud: RunningCloud, agent: Agent
) -> None:
    """R2: the gateway rebuilds from its log; the device uploads its new tokens only."""
    talk = agent.new_conversation()
    first = reply(agent, CUTS["split"], PROMPT * 4, 20, conversation=talk)
    first.result()
    for pid in pids(cloud):
        os.kill(pid, signal.SIGKILL)
    second = reply(agent, CUTS["split"], [*PROMPT * 4, *first.token_ids, 7, 8, 9], 2, conversation=talk)
    second.result()
    agent.end_conversation(talk)
    assert unbroken(second) and second.stats is not None and first.stats is not None
    assert second.stats.bytes_up < first.stats.bytes_up / 4
