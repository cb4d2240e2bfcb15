"""The heart: whatever the plan, the answer is the one that the same plan gives in one process, token by token."""

from __future__ import annotations

import numpy as np
import pytest
from pair import Pair, make_reference
from running_cloud import open_agent, running_cloud

from splitglm_core.plan import Arm, Codec, HeadSide, Precision, Privacy, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_partitioner.request import Fixed

LAYERS = 5
CHUNK = 16
GREEDY = SamplingParams()
SAMPLED = SamplingParams(
    temperature=0.9, top_p=0.9, top_k=50, seed=20, repetition_penalty=1.2, frequency_penalty=0.2, presence_penalty=0.1
)
PLANS = {
    "device": (LAYERS, LAYERS),
    "cloud": (0, LAYERS),
    "split-1": (1, LAYERS),
    "split-3": (3, LAYERS),
    "ushape-2-4": (2, 4),
    "ushape-1-2": (1, 2),
    "ushape-t=N": (2, LAYERS),
}


def plan_of(name: str, codec: Codec, layers: int = LAYERS, chunk: int = CHUNK) -> SplitPlan:
    s, t = PLANS[name]
    on_device = name.startswith(("device", "ushape"))
    head = HeadSide.DEVICE if on_device else HeadSide.CLOUD
    return SplitPlan(layers=layers, s=s, t=t, head=head, codec=codec, chunk_tokens=chunk)


def fixed_of(plan: SplitPlan) -> Fixed:
    if plan.arm in (Arm.DEVICE, Arm.CLOUD):
        return Fixed(arm=plan.arm)
    return Fixed(arm=plan.arm, s=plan.s, t=plan.t if plan.arm is Arm.USHAPE else None)


def some_ids(count: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 256, count)]


def said(pair: Pair, plan: SplitPlan, ids: list[int], sampling: SamplingParams, new: int, **options: object) -> list:
    generation = pair.agent.generate(
        ids,
        max_tokens=new,
        sampling=sampling,
        fixed=fixed_of(plan),
        codecs=(plan.codec,),
        privacy=Privacy.OPEN,
        chunk_tokens=plan.chunk_tokens,
        ignore_eos=True,
        **options,
    )
    generation.result()
    assert generation.stats is not None
    assert (generation.stats.plan.s, generation.stats.plan.t) == (plan.s, plan.t)
    assert generation.stats.plan.arm is plan.arm and generation.stats.fallbacks == ()
    return generation.token_ids


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("model", ["glm", "glm4"])
def test_every_arm_says_what_its_plan_says_in_one_process(
    pairs: dict[str, Pair], model: str, name: str, sampling: SamplingParams
) -> None:
    plan, ids = plan_of(name, Codec.FP32), some_ids(37, seed=len(name))
    expected = pairs[model].reference.tokens(plan, [ids], new=20, sampling=sampling)[0]
    assert len(set(expected)) > 2  # a model that repeats one token would prove little
    assert said(pairs[model], plan, ids, sampling, 20) == expected


@pytest.mark.parametrize("codec", [Codec.BF16, Codec.INT8])
@pytest.mark.parametrize("name", [name for name in PLANS if name.startswith(("split", "ushape"))])
def test_a_codec_changes_the_answer_only_as_its_rounding_does(glm: Pair, name: str, codec: Codec) -> None:
    plan, ids = plan_of(name, codec), some_ids(37, seed=3)
    expected = glm.reference.tokens(plan, [ids], new=20, sampling=SAMPLED)[0]
    assert said(glm, plan, ids, SAMPLED, 20) == expected


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 22 * CHUNK + 5])
@pytest.mark.parametrize("name", ["cloud", "split-3", "ushape-2-4", "ushape-t=N"])
def test_prompts_of_any_number_of_chunks(glm: Pair, name: str, count: int) -> None:
    plan, ids = plan_of(name, Codec.BF16), some_ids(count, seed=count)
    expected = glm.reference.tokens(plan, [ids], new=4, sampling=GREEDY)[0]
    assert said(glm, plan, ids, GREEDY, 4) == expected


@pytest.mark.parametrize("name", ["cloud", "split-3", "ushape-2-4", "ushape-t=N"])
def test_a_chunk_longer_than_the_clouds_parts(glm: Pair, name: str) -> None:
    plan, ids = plan_of(name, Codec.BF16, chunk=400), some_ids(430, seed=11)
    expected = glm.reference.tokens(plan, [ids], new=6, sampling=SAMPLED)[0]
    assert said(glm, plan, ids, SAMPLED, 6) == expected


@pytest.mark.parametrize("name", PLANS)
def test_a_conversations_turns_go_on_in_the_same_caches(glm: Pair, name: str) -> None:
    plan = plan_of(name, Codec.BF16)
    turns = [some_ids(20, seed=1), some_ids(5, seed=2), some_ids(18, seed=3)]
    expected = glm.reference.tokens(plan, turns, new=6, sampling=SAMPLED)
    talk = glm.agent.new_conversation()
    spoken: list[int] = []
    replies = []
    for turn in turns:
        spoken += turn
        replies.append(said(glm, plan, spoken, SAMPLED, 6, conversation=talk))
        spoken = spoken + replies[-1]
    glm.agent.end_conversation(talk)
    assert replies == expected


@pytest.mark.parametrize("name", PLANS)
def test_a_rewritten_past_is_cut_off_and_run_anew(glm: Pair, name: str) -> None:
    """The second prompt shares 10 of 30 tokens with the first: positions beyond them must leave no trace."""
    plan, first = plan_of(name, Codec.FP32), some_ids(30, seed=5)
    second = first[:10] + some_ids(9, seed=6)
    expected = glm.reference.tokens(plan, [second], new=6, sampling=GREEDY)[0]
    talk = glm.agent.new_conversation()
    said(glm, plan, first, GREEDY, 8, conversation=talk)
    assert said(glm, plan, second, GREEDY, 6, conversation=talk) == expected
    glm.agent.end_conversation(talk)


@pytest.mark.parametrize("name", PLANS)
def test_a_reply_ends_with_the_models_end_token(glm: Pair, name: str) -> None:
    plan, ids = plan_of(name, Codec.FP32), some_ids(12, seed=7)
    free = glm.reference.tokens(plan, [ids], new=12, sampling=SAMPLED)[0]
    eos = glm.agent.checkpoint.config.eos_token_ids
    assert not set(free) & set(eos)  # so it would not end by itself
    bias = SamplingParams(temperature=50.0, seed=1)
    expected = glm.reference.tokens(plan, [ids], new=400, sampling=bias, stop_ids=eos)[0]
    assert expected[-1] in eos and len(expected) < 400
    generation = glm.agent.generate(
        ids, max_tokens=400, sampling=bias, fixed=fixed_of(plan), codecs=(Codec.FP32,), privacy=Privacy.OPEN,
        chunk_tokens=CHUNK,
    )  # fmt: skip
    generation.result()
    assert generation.token_ids == expected
    assert generation.stats is not None and generation.stats.finish == "stop"


@pytest.mark.parametrize("name", ["ushape-2-4", "ushape-t=N"])
def test_a_cloud_without_text_serves_no_text_requests(glm: Pair, name: str) -> None:
    plan, ids = plan_of(name, Codec.BF16), some_ids(20, seed=8)
    expected = glm.reference.tokens(plan, [ids], new=8, sampling=SAMPLED)[0]
    with running_cloud(glm.model, glm.home, text=False) as cloud, open_agent(glm.model, glm.home, cloud) as agent:
        assert not (cloud.server.manifest.embedding or cloud.server.manifest.head)
        generation = agent.generate(
            ids, max_tokens=8, sampling=SAMPLED, fixed=fixed_of(plan), codecs=(Codec.BF16,), privacy=Privacy.NO_TEXT,
            chunk_tokens=CHUNK, ignore_eos=True,
        )  # fmt: skip
        generation.result()
        assert generation.token_ids == expected


@pytest.mark.parametrize("runner", ["torch"])
@pytest.mark.parametrize("name", ["cloud", "split-3", "ushape-2-4"])
def test_another_runner_in_the_cloud_gives_the_same_greedy_answer(
    pairs: dict[str, Pair], name: str, runner: str
) -> None:
    pair = pairs["glm4"]
    plan, ids = plan_of(name, Codec.FP32), some_ids(20, seed=9)
    expected = pair.reference.tokens(plan, [ids], new=10, sampling=GREEDY)[0]
    with (
        running_cloud(pair.model, pair.home, runner=runner) as cloud,
        open_agent(pair.model, pair.home, cloud) as agent,
    ):
        other = Pair(pair.model, pair.home, cloud, agent, pair.reference)
        assert said(other, plan, ids, GREEDY, 10) == expected


def test_the_demo_model_in_eight_bits_says_the_same_in_every_arm(demo_model_dir, tmp_path_factory) -> None:
    """Real weights, the precision that people use, text through the chat template."""
    from splitglm_glm.store import ModelStore

    home = ModelStore().root  # its graphs are built once for all
    layers = 30
    keys = tmp_path_factory.mktemp("keys")
    reference = make_reference(demo_model_dir, home, Precision.INT8)
    with (
        running_cloud(demo_model_dir, home, precision=Precision.INT8, key_file=keys / "node.key") as cloud,
        open_agent(demo_model_dir, home, cloud, precision=Precision.INT8) as agent,
    ):
        pair = Pair(demo_model_dir, home, cloud, agent, reference)
        ids = agent.encode("What is the capital of France?")
        for s, t, head in ((30, 30, "device"), (0, 30, "cloud"), (12, 30, "cloud"), (6, 24, "device")):
            plan = SplitPlan(layers=layers, s=s, t=t, head=HeadSide(head), codec=Codec.INT8, chunk_tokens=CHUNK)
            expected = reference.tokens(plan, [ids], new=8, sampling=SAMPLED)[0]
            assert said(pair, plan, ids, SAMPLED, 8) == expected


def test_a_lone_device_is_told_in_eight_bits_what_it_tells_itself(demo_model_dir, tmp_path_factory) -> None:
    """Without exact batches, rows that have no mates are computed as the device computes them: the demo shows it."""
    from splitglm_glm.store import ModelStore

    home, keys = ModelStore().root, tmp_path_factory.mktemp("keys")
    with (
        running_cloud(
            demo_model_dir, home, precision=Precision.INT8, key_file=keys / "node.key", exact_batches=False
        ) as cloud,
        open_agent(demo_model_dir, home, cloud, precision=Precision.INT8) as agent,
    ):
        for prompt in ("What is the capital of France?", "Name a colour of the sky at night."):
            ids = agent.encode(prompt)
            options = {"max_tokens": 24, "codecs": (Codec.FP32,), "privacy": Privacy.OPEN, "chunk_tokens": 128}
            alone = agent.generate(ids, fixed=Fixed(arm=Arm.DEVICE), **options).result()
            for fixed in (Fixed(arm=Arm.CLOUD), Fixed(arm=Arm.SPLIT, s=15), Fixed(arm=Arm.USHAPE, s=7, t=23)):
                assert agent.generate(ids, fixed=fixed, **options).result() == alone
