"""One tiny model, a cloud that serves it, and an agent connected to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glm_factory import write_tiny_checkpoint
from running_cloud import RunningCloud, open_agent, running_cloud

from splitglm_core.plan import Arm, Codec, Privacy
from splitglm_core.sampling import SamplingParams
from splitglm_edge import Agent, Generation
from splitglm_edge.advice import Advice
from splitglm_partitioner.request import Fixed
from splitglm_sims.link_emulator import LinkEmulator, run_in_thread
from splitglm_sims.shaper import LinkShape

LAYERS = 4
CUTS = {
    "device": Fixed(arm=Arm.DEVICE),
    "cloud": Fixed(arm=Arm.CLOUD),
    "split": Fixed(arm=Arm.SPLIT, s=1),
    "ushape": Fixed(arm=Arm.USHAPE, s=1, t=3),
}
PROMPT = [int(i) for i in np.random.default_rng(2).integers(0, 256, 40)]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("edge")


@pytest.fixture(scope="session")
def model(home: Path) -> Path:
    return write_tiny_checkpoint(home / "model", layers=LAYERS)


@pytest.fixture(scope="session")
def cloud(model: Path, home: Path) -> Iterator[RunningCloud]:
    with running_cloud(model, home) as running:
        yield running


@pytest.fixture(scope="session")
def agent(model: Path, home: Path, cloud: RunningCloud) -> Iterator[Agent]:
    with open_agent(model, home, cloud) as one:
        yield one


@pytest.fixture
def link(cloud: RunningCloud) -> Iterator[LinkEmulator]:
    """A link to the cloud that can be broken."""
    shape = LinkShape(delay_s=0.0)
    with run_in_thread(LinkEmulator("127.0.0.1", cloud.port, shape, shape)) as emulator:
        yield emulator


@pytest.fixture
def agent_over(model: Path, home: Path, cloud: RunningCloud, link: LinkEmulator) -> Iterator[Callable[..., Agent]]:
    """Makes agents that reach the cloud over ``link``."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            open_agent(model, home, cloud, address=f"127.0.0.1:{link.port}", **options)
        )


@pytest.fixture
def ask() -> Callable[..., Generation]:
    """``ask(agent, arm, ...)``: a sampled reply of 40 tokens in fp32, which is the same in every arm."""

    def make(agent: Agent, arm: str, **changes: Any) -> Generation:
        options: dict[str, Any] = {
            "max_tokens": 40,
            "sampling": SamplingParams(temperature=0.9, top_p=0.9, seed=1, frequency_penalty=0.3),
            "fixed": CUTS[arm],
            "codecs": (Codec.FP32,),
            "privacy": Privacy.OPEN,
            "chunk_tokens": 8,
            "ignore_eos": True,
        } | changes
        return agent.generate(options.pop("prompt", PROMPT), **options)

    return make


@pytest.fixture(scope="session")
def truth(agent: Agent) -> tuple[list[int], str]:
    """Tokens and text of what ``ask`` asks for, uninterrupted."""
    generation = agent.generate(
        PROMPT,
        max_tokens=40,
        sampling=SamplingParams(temperature=0.9, top_p=0.9, seed=1, frequency_penalty=0.3),
        fixed=CUTS["device"],
        chunk_tokens=8,
        ignore_eos=True,
    )
    text = generation.result()
    return generation.token_ids, text


@pytest.fixture
def loves_the_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that takes the split arm whenever there is a cloud; without one there is only the device."""
    decide = Advice.decide

    def biased(self: Advice, request: Any, *, use_cloud: bool, **other: Any) -> Any:
        if use_cloud and request.fixed.arm is None:
            request = replace(request, fixed=Fixed(arm=Arm.SPLIT, s=1))
        return decide(self, request, use_cloud=use_cloud, **other)

    monkeypatch.setattr(Advice, "decide", biased)
