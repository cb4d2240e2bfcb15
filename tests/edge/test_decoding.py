"""The decoding loops: what is kept, what is run, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import PromptTooLong
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.sampling import SamplingParams
from splitglm_edge import Agent
from splitglm_edge.decoding import DeviceDecoder
from splitglm_edge.decoding_cloud import CloudDecoder
from splitglm_edge.decoding_hidden import HiddenDecoder
from splitglm_edge.front import preload_for
from splitglm_edge.planning import sendable_chunks
from splitglm_edge.remote import RemoteSession
from splitglm_edge.stats import Meter
from splitglm_edge.timeouts import Timeouts
from splitglm_glm.sampling import Sampler
from splitglm_wire.codec import max_rows
from splitglm_wire.limits import MAX_ROWS

LAYERS = 4


@pytest.fixture
def decoder(agent: Agent) -> DeviceDecoder:
    return DeviceDecoder(SplitPlan.device_only(LAYERS, chunk_tokens=8), 64, agent._stack, 64)


@given(
    hidden=st.integers(1, 16384),
    codecs=st.lists(st.sampled_from(list(Codec)), unique=True, max_size=3).map(tuple),
    chunk=st.integers(1, 9000),
    prompt=st.integers(1, 4096),
)
def test_a_chunk_that_is_offered_is_the_chunk_that_runs(
    hidden: int, codecs: tuple[Codec, ...], chunk: int, prompt: int
) -> None:
    offered = sendable_chunks(prompt, chunk, (32, 64, 128, 256, 5000), codecs=codecs, hidden=hidden)
    sizes = (offered["chunk_tokens"], *offered["chunks"])
    assert len(set(sizes)) == len(sizes) and offered["chunk_tokens"] <= chunk
    for codec in codecs:
        assert max(sizes) <= max_rows(codec, hidden)
    assert max(sizes) <= MAX_ROWS


def test_only_chunks_of_hidden_states_are_cut_to_a_record(agent: Agent) -> None:
    """Of width 4096 a record holds 125 rows of bf16; token ids, and what stays here, are not cut by that."""
    rows = max_rows(Codec.BF16, 4096)
    assert rows < 128
    device = DeviceDecoder(SplitPlan.device_only(LAYERS, chunk_tokens=256), 64, agent._stack, 4096)
    split = SplitPlan(layers=LAYERS, s=1, t=LAYERS, head=HeadSide.CLOUD, codec=Codec.BF16, chunk_tokens=256)
    assert agent._cloud is not None
    remote = RemoteSession(agent._cloud.link, Timeouts())
    ids = CloudDecoder(SplitPlan.cloud_only(LAYERS, chunk_tokens=256), 64, remote, 4096)
    states = HiddenDecoder(split, 64, agent._stack, remote, 4096)
    assert (device._chunk, ids._chunk, states._chunk) == (256, 256, rows)
    for one in (device, states):
        one.close()


def run(decoder: DeviceDecoder, ids: list[int], count: int, **options: object) -> list[int]:
    values = {"sampling": SamplingParams(), "stop_ids": (), "meter": Meter()} | options
    return list(decoder.generate(ids, max_tokens=count, **values))  # type: ignore[arg-type]


def one_by_one(agent: Agent, ids: list[int], count: int) -> list[int]:
    stack, everything = agent._stack, LayerRange(0, LAYERS)
    cache, sampler, out = stack.new_cache(everything, 64), Sampler(SamplingParams()), []
    for start in range(0, len(ids), 8):
        hidden = stack.forward(stack.embed(np.array(ids[start : start + 8], np.int64)), cache, everything)
    while True:
        out.append(sampler.pick(stack.logits(hidden[-1:])[0], cache.length))
        if len(out) == count:
            return out
        hidden = stack.forward(stack.embed(np.array(out[-1:], np.int64)), cache, everything)


def test_it_says_what_the_layers_say(agent: Agent, decoder: DeviceDecoder) -> None:
    ids = list(range(30, 51))
    assert run(decoder, ids, 10) == one_by_one(agent, ids, 10)
    decoder.close()


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ([1, 2, 3], 2),  # at least one token is always run
        ([1, 2, 3, 4], 3),
        ([1, 2, 9, 4], 2),
        ([9], 0),
        ([1], 0),
        ([1, 2, 3, 4, 5, 6, 7], 5),
    ],
)
def test_the_shared_prefix_is_what_need_not_be_run_again(decoder: DeviceDecoder, ids: list[int], kept: int) -> None:
    decoder.cached = [1, 2, 3, 4, 5]
    assert decoder.shared_prefix(ids) == kept


def test_what_is_cached_is_every_token_but_the_newest(decoder: DeviceDecoder) -> None:
    said = run(decoder, [5, 6, 7], 4)
    assert decoder.cached == [5, 6, 7, *said[:-1]]
    meter = Meter()
    run(decoder, [5, 6, 7, *said, 8, 9], 2, meter=meter)
    assert meter.kept_tokens == 6


def test_a_stop_id_ends_the_reply_and_is_part_of_it(agent: Agent, decoder: DeviceDecoder) -> None:
    said = one_by_one(agent, [5, 6, 7], 10)
    stop = said[4]
    assert run(decoder, [5, 6, 7], 10, stop_ids=(stop,)) == said[: said.index(stop) + 1]


def test_a_prompt_that_does_not_fit_changes_nothing(decoder: DeviceDecoder) -> None:
    said = run(decoder, [5, 6, 7], 4)
    cached = list(decoder.cached)
    with pytest.raises(PromptTooLong):
        run(decoder, [1] * 60, 6)
    assert decoder.cached == cached
    assert run(decoder, [5, 6, 7], 4) == said
    assert len(run(decoder, [1] * 60, 5)) == 5  # the last token takes no position


def test_history_of_a_rebuilt_reply_counts_for_penalties(decoder: DeviceDecoder) -> None:
    sampling = SamplingParams(presence_penalty=50.0)
    whole = run(decoder, [5, 6, 7], 8, sampling=sampling)
    assert len(set(whole)) == 8  # so strong a penalty allows no token twice
    rest = run(decoder, [5, 6, 7, *whole[:3]], 5, sampling=sampling, generated=tuple(whole[:3]))
    assert rest == whole[3:]


@pytest.mark.parametrize(
    ("plan", "parts"),
    [
        (SplitPlan.device_only(LAYERS), {"embedding", "layer-000", "layer-001", "layer-002", "layer-003", "head"}),
        (SplitPlan.cloud_only(LAYERS), set()),
    ],
)
def test_a_plan_loads_exactly_what_it_needs(plan: SplitPlan, parts: set[str]) -> None:
    asked: set[str] = set()

    class Front:
        def preload(self, layers: LayerRange, *, embedding: bool, head: bool) -> None:
            asked.update(f"layer-{i:03d}" for i in layers)
            asked.update(["embedding"] * embedding + ["head"] * head)

    preload_for(Front(), plan)  # type: ignore[arg-type]
    assert asked == parts
    assert plan.codec is Codec.BF16
