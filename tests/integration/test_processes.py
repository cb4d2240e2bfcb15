"""Real processes, really killed: no token is lost, repeated or changed, and who cannot go on says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cloud_process import CloudProcess
from glm_factory import write_tiny_checkpoint

from splitglm_core.errors import LinkError
from splitglm_core.plan import Arm, Codec, Precision, Privacy
from splitglm_core.sampling import SamplingParams
from splitglm_edge import Agent, CloudAddress, Generation
from splitglm_edge.probe import load_profile, profile_path, save_profile
from splitglm_edge.timeouts import Timeouts
from splitglm_glm.store import ModelStore
from splitglm_partitioner.request import Fixed

LAYERS = 5
NEW = 300
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, seed=5, frequency_penalty=0.2)
CUTS = {
    "cloud": Fixed(arm=Arm.CLOUD),
    "split": Fixed(arm=Arm.SPLIT, s=2),
    "ushape": Fixed(arm=Arm.USHAPE, s=2, t=4),
}
PROMPT = [int(i) for i in np.random.default_rng(4).integers(0, 256, 30)]
SLOW_MACHINE = Timeouts(silence_s=10.0, rejoin_s=60.0)
"""For the tests in which nothing hangs."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("processes")
    write_tiny_checkpoint(home / "model", layers=LAYERS)
    return home


@pytest.fixture
def cloud(home: Path) -> Iterator[CloudProcess]:
    with CloudProcess(home / "model", home) as process:
        yield process


def open_agent(home: Path, cloud: CloudProcess | None, timeouts: Timeouts = SLOW_MACHINE) -> Agent:
    where = None if cloud is None else CloudAddress(address=cloud.address, key=cloud.key)
    store = ModelStore(home)
    return Agent.open(
        str(home / "model"), cloud=where, precision=Precision.FP32, threads=1, store=store, timeouts=timeouts
    )


def reply(agent: Agent, fixed: Fixed | None, new: int = NEW) -> Generation:
    return agent.generate(
        PROMPT,
        max_tokens=new,
        sampling=SAMPLED,
        fixed=fixed,
        codecs=(Codec.FP32,),
        privacy=Privacy.OPEN,
        ignore_eos=True,
    )


@pytest.fixture(scope="module")
def truth(home: Path) -> tuple[list[int], str]:
    """The uninterrupted reply: tokens and text. In fp32 it is the same in every arm (tests/integration/test_pairs)."""
    with open_agent(home, None) as agent:
        generation = reply(agent, Fixed(arm=Arm.DEVICE))
        return generation.token_ids if generation.result() else [], generation.text


def until_tokens(generation: Generation, count: int) -> list[str]:
    pieces = []
    while len(generation.token_ids) < count:
        pieces.append(next(generation))
    return pieces


@pytest.mark.parametrize("arm", CUTS)
def test_a_killed_cloud_that_comes_back_costs_no_token(
    home: Path, cloud: CloudProcess, truth: tuple[list[int], str], arm: str
) -> None:
    with open_agent(home, cloud) as agent, ThreadPoolExecutor(1) as other:
        generation = reply(agent, CUTS[arm])
        pieces = []
        for count in (2, 150) if arm == "split" else (2,):
            pieces += until_tokens(generation, count)
            cloud.kill()
            restarted = other.submit(cloud.start)
        pieces += list(generation)
        restarted.result()
        assert generation.token_ids == truth[0]
        assert "".join(pieces) == generation.text == truth[1]
        assert generation.stats is not None
        assert generation.stats.fallbacks and generation.stats.plan.arm.value == arm
        assert generation.stats.finish == "length"


@pytest.fixture
def slow_device(home: Path) -> Iterator[None]:
    """The stored profile says that this device is slow, so the policy prefers the cloud while there is one."""
    with open_agent(home, None) as agent:
        profile, fingerprint = agent.profile, agent.checkpoint.fingerprint
    path = profile_path(home, fingerprint, Precision.FP32, 1)
    here = profile.precisions[0]
    points = tuple(replace(point, s_per_token=tuple(1.0 for _ in point.s_per_token)) for point in here.times.prefill)
    times = replace(here.times, decode_s=(1.0,) * LAYERS, prefill=points, decode_s_per_1k_context=0.0)
    save_profile(replace(profile, precisions=(replace(here, times=times),)), path)
    assert load_profile(path) is not None
    yield
    save_profile(profile, path)


@pytest.mark.usefixtures("slow_device")
def test_the_device_finishes_alone_when_the_cloud_is_killed_for_good(
    home: Path, cloud: CloudProcess, truth: tuple[list[int], str]
) -> None:
    with open_agent(home, cloud) as agent:
        generation = reply(agent, None)
        pieces = until_tokens(generation, 2)
        cloud.kill()
        killed_s = time.monotonic()
        pieces += list(generation)
        assert time.monotonic() - killed_s < 10.0
        assert generation.token_ids == truth[0] and "".join(pieces) == truth[1]
        assert generation.stats is not None
        assert generation.stats.plan.arm is Arm.DEVICE
        assert any(note.startswith("cloud: ") for note in generation.stats.fallbacks)


@pytest.mark.usefixtures("slow_device")
def test_a_hung_cloud_is_left_and_does_no_harm_when_it_wakes_up(
    home: Path, cloud: CloudProcess, truth: tuple[list[int], str]
) -> None:
    with open_agent(home, cloud, Timeouts()) as agent:
        generation = reply(agent, None)
        until_tokens(generation, 2)
        cloud.signal(signal.SIGSTOP)
        hung_s = time.monotonic()
        generation.result()
        # 1.5 s to notice, as long again for one attempt to reach it anew, and the reply itself.
        assert time.monotonic() - hung_s < 8.0
        cloud.signal(signal.SIGCONT)
        assert generation.token_ids == truth[0]
        assert generation.stats is not None and generation.stats.plan.arm is Arm.DEVICE
        assert "silent" in " ".join(generation.stats.fallbacks) or "answer" in " ".join(generation.stats.fallbacks)


def test_a_reply_goes_on_where_a_hung_cloud_wakes_up(
    home: Path, cloud: CloudProcess, truth: tuple[list[int], str]
) -> None:
    with open_agent(home, cloud, Timeouts(silence_s=0.5)) as agent:
        generation = reply(agent, CUTS["split"])
        until_tokens(generation, 20)
        cloud.signal(signal.SIGSTOP)
        waking = threading.Timer(3.0, cloud.signal, (signal.SIGCONT,))  # the length of the fault
        waking.start()
        generation.result()
        waking.join()
        assert generation.token_ids == truth[0]
        assert generation.stats is not None
        assert generation.stats.fallbacks or generation.stats.reconnects


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reply_that_needs_the_cloud_fails_clearly_and_in_time(
    home: Path, cloud: CloudProcess, fault: signal.Signals
) -> None:
    with open_agent(home, cloud, Timeouts(silence_s=0.6, rejoin_s=0.5)) as agent:
        generation = reply(agent, CUTS["ushape"])
        until_tokens(generation, 5)
        said = len(generation.token_ids)
        cloud.signal(fault)
        failed_s = time.monotonic()
        with pytest.raises(LinkError) as failure:
            generation.result()
        assert time.monotonic() - failed_s < 8.0
        assert f"after {len(generation.token_ids)} tokens" in failure.value.what and failure.value.hint
        assert len(generation.token_ids) >= said
        assert generation.stats is not None and generation.stats.finish == "error"


def test_sigterm_lets_running_steps_end_and_exits_with_zero(
    home: Path, cloud: CloudProcess, truth: tuple[list[int], str]
) -> None:
    with open_agent(home, cloud) as agent:
        generation = reply(agent, CUTS["cloud"])  # one step generates everything
        until_tokens(generation, 2)
        cloud.signal(signal.SIGTERM)
        generation.result()
        assert generation.token_ids == truth[0]
        assert generation.stats is not None and generation.stats.fallbacks == ()
        assert cloud.wait() == 0


def test_a_killed_device_disturbs_nobody(home: Path, truth: tuple[list[int], str]) -> None:
    code = """
import sys
from splitglm_edge import Agent, CloudAddress
from splitglm_core.plan import Arm, Precision, Privacy
from splitglm_partitioner.request import Fixed
from splitglm_glm.store import ModelStore
from pathlib import Path
model, home, address, key = sys.argv[1:]
agent = Agent.open(model, cloud=CloudAddress(address=address, key=key), precision=Precision.FP32, threads=1,
                   store=ModelStore(Path(home)))
while True:
    for piece in agent.generate([1, 2, 3], max_tokens=400, fixed=Fixed(arm=Arm.SPLIT, s=2), privacy=Privacy.OPEN):
        print("token", flush=True)
"""
    with CloudProcess(home / "model", home) as cloud:
        third = subprocess.Popen(
            [sys.executable, "-c", code, str(home / "model"), str(home), cloud.address, cloud.key],
            stdout=subprocess.PIPE, env={**os.environ, "SPLITGLM_HOME": str(home)},
        )  # fmt: skip
        assert third.stdout is not None and third.stdout.readline() == b"token\n"

        def run(arm: str) -> list[int]:
            with open_agent(home, cloud) as agent:
                generation = reply(agent, CUTS[arm])
                until_tokens(generation, 10)
                started.wait()
                generation.result()
                assert generation.stats is not None
                assert generation.stats.fallbacks == () and generation.stats.reconnects == 0
                return generation.token_ids

        started = threading.Barrier(3)
        with ThreadPoolExecutor(2) as pool:
            replies = [pool.submit(run, arm) for arm in ("split", "ushape")]
            started.wait(60)  # both are in the middle of their replies
            third.kill()
            third.wait(10)
            third.stdout.close()
            assert [future.result(60) for future in replies] == [truth[0], truth[0]]
