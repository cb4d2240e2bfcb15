"""The reference implementation is the specification: `transformers` on the same checkpoint, token for token."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from glm_factory import write_tiny_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from splitglm_core.errors import BadTensor, InputError, InternalError, PromptTooLong
from splitglm_core.ranges import LayerRange
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.model import GlmModel, TorchKvCache

TOLERANCE = 1e-4
LAYERS = 4
TOKENS = 24

# One row per published family feature: (name, arguments of the factory).
FAMILIES = {
    "glm-4-9b-hf": {"model_type": "glm"},
    "glm-edge": {"model_type": "glm", "attention_bias": False, "partial_rotary": 1.0, "tied": True},
    "glm-4-0414": {"model_type": "glm4", "attention_bias": False},
    "z1-with-bias": {"model_type": "glm4", "attention_bias": True, "tied": True},
    "multi-query": {"model_type": "glm", "kv_heads": 1, "heads": 6, "head_dim": 8, "hidden": 40},
    "multi-head": {"model_type": "glm4", "kv_heads": 4, "partial_rotary": 0.25, "intermediate": 80},
}


@dataclass(frozen=True)
class Case:
    """A model of ours and what the reference says about one prompt."""

    model: GlmModel
    ids: torch.Tensor  # [TOKENS]
    reference_logits: torch.Tensor  # [TOKENS, V]
    reference_hidden: tuple[torch.Tensor, ...]  # entry of layer i, [TOKENS, H]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = write_tiny_checkpoint(tmp_path_factory.mktemp(request.param), layers=LAYERS, **FAMILIES[request.param])
    return _case(directory, directory)


def _case(ours: Path, reference: Path) -> Case:
    theirs = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(0, 320, (TOKENS,), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        out = theirs(ids[None], output_hidden_states=True)
    checkpoint = Checkpoint.open(ours)
    model = GlmModel.load(checkpoint, LayerRange(0, LAYERS), embedding=True, head=True)
    return Case(model, ids, out.logits[0], tuple(h[0] for h in out.hidden_states))


def _run(model: GlmModel, ids: torch.Tensor, cuts: list[int], chunks: list[int]) -> torch.Tensor:
    """Logits [n, V] with the layers cut at ``cuts`` (own cache each) and the tokens fed in ``chunks``."""
    ranges = [LayerRange(a, b) for a, b in pairwise([0, *cuts, LAYERS])]
    caches = [model.new_cache(layers, len(ids)) for layers in ranges]
    rows = []
    for a, b in pairwise([0, *chunks, len(ids)]):
        hidden = model.embed(ids[a:b])
        for layers, cache in zip(ranges, caches, strict=True):
            hidden = model(hidden, cache, layers)
        rows.append(model.logits(hidden))
    return torch.cat(rows)


def _assert_same(logits: torch.Tensor, reference: torch.Tensor) -> None:
    assert logits.shape == reference.shape
    assert (logits - reference).abs().max().item() <= TOLERANCE
    assert torch.equal(logits.argmax(-1), reference.argmax(-1))


def test_logits_equal_the_reference(case: Case) -> None:
    assert case.reference_logits.abs().max() > 1, "a degenerate model would prove nothing"
    _assert_same(_run(case.model, case.ids, [], []), case.reference_logits)


def test_hidden_states_at_every_cut_equal_the_reference(case: Case) -> None:
    for cut in range(LAYERS):
        layers = LayerRange(0, cut)
        hidden = case.model(case.model.embed(case.ids), case.model.new_cache(layers, TOKENS), layers)
        assert (hidden - case.reference_hidden[cut]).abs().max().item() <= TOLERANCE


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.sets(st.integers(1, LAYERS - 1)),
    chunks=st.sets(st.integers(1, TOKENS - 1)),
)
def test_any_cuts_and_any_chunking_equal_the_reference(case: Case, cuts: set[int], chunks: set[int]) -> None:
    _assert_same(_run(case.model, case.ids, sorted(cuts), sorted(chunks)), case.reference_logits)


def test_token_by_token_decoding_equals_the_reference(case: Case) -> None:
    _assert_same(_run(case.model, case.ids, [2], list(range(1, TOKENS))), case.reference_logits)


def test_truncated_positions_leave_no_trace(case: Case) -> None:
    """A rejected draft is rolled back: other tokens run at positions 10.. first, then the right ones."""
    model, layers = case.model, LayerRange(0, LAYERS)
    cache = model.new_cache(layers, TOKENS)
    model(model.embed(case.ids[:10]), cache, layers)
    model(model.embed(case.ids.flip(0)[:8]), cache, layers)
    cache.truncate(10)
    assert cache.length == 10
    hidden = model(model.embed(case.ids[10:]), cache, layers)
    _assert_same(model.logits(hidden), case.reference_logits[10:])


def test_front_and_tail_may_share_a_cache(case: Case) -> None:
    """U-shape: [0, 1) and [3, 4) on one cache, [1, 3) on another; lengths advance range by range."""
    model = case.model
    front, back, tail = LayerRange(0, 1), LayerRange(1, 3), LayerRange(3, 4)
    device = model.new_cache(LayerRange(0, LAYERS), TOKENS)
    cloud = model.new_cache(back, TOKENS)
    rows = []
    for a, b in ((0, 16), (16, 17), (17, TOKENS)):
        hidden = model(model.embed(case.ids[a:b]), device, front)
        assert (device.length_of(front), device.length_of(tail)) == (b, a)
        hidden = model(model(hidden, cloud, back), device, tail)
        rows.append(model.logits(hidden))
    _assert_same(torch.cat(rows), case.reference_logits)


@pytest.mark.parametrize("attention_bias", [True, False])
def test_original_chatglm_naming_is_the_same_model(tmp_path: Path, attention_bias: bool) -> None:
    original = write_tiny_checkpoint(tmp_path / "original", "chatglm", attention_bias=attention_bias, shards=2)
    converted = write_tiny_checkpoint(tmp_path / "converted", "glm", attention_bias=attention_bias)
    found = _case(original, converted)
    _assert_same(_run(found.model, found.ids, [2], [5]), found.reference_logits)


def test_bfloat16_checkpoint_widened_to_float32_equals_the_reference(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path, "glm4", dtype="bfloat16")
    found = _case(directory, directory)
    _assert_same(_run(found.model, found.ids, [1], []), found.reference_logits)


@pytest.mark.parametrize("model_type", ["glm", "glm4"])
def test_bfloat16_arithmetic_stays_near_the_references_own(tmp_path: Path, model_type: str) -> None:
    """Fused projections round in another order, so equality is to bfloat16's precision, measured against float32."""
    directory = write_tiny_checkpoint(tmp_path, model_type)
    exact = _case(directory, directory)
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="eager").eval()
    with torch.no_grad():
        reference_error = (theirs(exact.ids[None]).logits[0].float() - exact.reference_logits).pow(2).mean().sqrt()
    checkpoint = Checkpoint.open(directory)
    ours = GlmModel.load(checkpoint, LayerRange(0, LAYERS), embedding=True, head=True, dtype=torch.bfloat16)
    logits = _run(ours, exact.ids, [2], [9])
    assert logits.dtype == torch.float32
    assert (logits - exact.reference_logits).pow(2).mean().sqrt() <= 1.5 * reference_error


def test_a_partial_load_holds_only_its_layers(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, tied=True))
    whole = GlmModel.load(checkpoint, LayerRange(0, LAYERS), embedding=True, head=True)
    back = GlmModel.load(checkpoint, LayerRange(1, 3), embedding=False, head=False)
    ends = GlmModel.load(checkpoint, LayerRange(0, 0), embedding=True, head=True)
    layer_bytes = back.resident_weight_bytes() // 2
    assert whole.resident_weight_bytes() == 4 * layer_bytes + ends.resident_weight_bytes()
    assert ends.resident_weight_bytes() == 4 * (320 * 64 + 64)  # a tied head counts once
    ids = torch.arange(5)
    cache = back.new_cache(LayerRange(1, 3), 5)
    there = back(whole.embed(ids), cache, LayerRange(1, 3))
    here = whole(whole.embed(ids), whole.new_cache(LayerRange(1, 3), 5), LayerRange(1, 3))
    assert torch.equal(there, here)
    with pytest.raises(InternalError, match="not loaded"):
        back(there, cache, LayerRange(0, 1))
    with pytest.raises(InternalError, match="embedding is not loaded"):
        back.embed(ids)
    with pytest.raises(InternalError, match="head is not loaded"):
        back.logits(there)


@pytest.fixture
def small(tmp_path: Path) -> GlmModel:
    checkpoint = Checkpoint.open(write_tiny_checkpoint(tmp_path, layers=2))
    return GlmModel.load(checkpoint, LayerRange(0, 2), embedding=True, head=True)


@pytest.mark.parametrize("bad", [[-1], [320], [0, 2**40]])
def test_token_ids_outside_the_vocabulary_are_refused(small: GlmModel, bad: list[int]) -> None:
    with pytest.raises(InputError, match="vocabulary of 320"):
        small.embed(torch.tensor(bad))


def test_token_ids_must_be_one_row_of_integers(small: GlmModel) -> None:
    for bad in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2)):
        with pytest.raises(InternalError, match="one row of integers"):
            small.embed(bad)


@pytest.mark.parametrize("shape", [(3, 63), (64,), (1, 3, 64)])
def test_misshapen_hidden_states_are_refused(small: GlmModel, shape: tuple[int, ...]) -> None:
    layers = LayerRange(0, 2)
    with pytest.raises(BadTensor, match=r"\[n, 64\]"):
        small(torch.zeros(shape), small.new_cache(layers, 8), layers)
    with pytest.raises(BadTensor, match=r"\[n, 64\]"):
        small.logits(torch.zeros(shape))


def test_a_full_cache_refuses_and_stays_usable(small: GlmModel) -> None:
    layers = LayerRange(0, 2)
    cache = small.new_cache(layers, 4)
    small(small.embed(torch.arange(3)), cache, layers)
    with pytest.raises(PromptTooLong, match=r"3 \+ 2 positions"):
        small(small.embed(torch.arange(2)), cache, layers)
    assert cache.length == 3
    small(small.embed(torch.arange(1)), cache, layers)
    assert cache.length == 4


@pytest.mark.parametrize("capacity", [0, -1, 513])
def test_a_cache_beyond_the_models_positions_is_refused(small: GlmModel, capacity: int) -> None:
    with pytest.raises(PromptTooLong, match=r"\[1, 512\]"):
        small.new_cache(LayerRange(0, 1), capacity)


def test_a_cache_refuses_layers_that_disagree_or_are_not_its_own(small: GlmModel) -> None:
    cache = small.new_cache(LayerRange(0, 2), 8)
    small(small.embed(torch.arange(2)), cache, LayerRange(0, 1))
    assert cache.length == 0
    with pytest.raises(InternalError, match="have run"):
        cache.length_of(LayerRange(0, 2))
    with pytest.raises(InternalError, match="not in a cache"):
        small.new_cache(LayerRange(0, 1), 8).length_of(LayerRange(1, 2))
    for bad in (-1, 3):
        with pytest.raises(InternalError, match="truncate"):
            cache.truncate(bad)


def test_an_empty_call_changes_nothing(small: GlmModel) -> None:
    layers = LayerRange(0, 2)
    cache = small.new_cache(layers, 4)
    assert small(torch.zeros(0, 64), cache, layers).shape == (0, 64)
    assert cache.length == 0


def test_a_cache_holds_memory_for_what_it_holds_not_for_what_it_may_hold(small: GlmModel) -> None:
    layers = LayerRange(0, 2)
    cache: TorchKvCache = small.new_cache(layers, 512)
    one = 2 * 2 * 2 * 16 * 4  # K and V, layers, heads, head_dim, bytes
    assert cache.bytes_reserved() == cache.committed == 0
    sizes = []
    for n in (1, 63, 1, 135, 300):
        assert cache.committed_for(cache.length + n) >= cache.length + n
        expected = max(cache.committed, cache.committed_for(cache.length + n))
        small(small.embed(torch.arange(n) % 256), cache, layers)
        assert cache.committed == expected and cache.bytes_reserved() == expected * one
        sizes.append(cache.committed)
    assert sizes == [64, 64, 128, 256, 512]
    for length, committed in ((200, 512), (128, 512), (127, 128), (20, 64), (0, 0)):
        cache.truncate(length)
        assert (cache.length, cache.committed) == (length, committed)


def test_growing_and_shrinking_a_cache_changes_no_result(small: GlmModel) -> None:
    layers, ids = LayerRange(0, 2), torch.arange(150) % 256
    whole = small(small.embed(ids), small.new_cache(layers, 512), layers)
    cache = small.new_cache(layers, 512)
    small(small.embed(ids[:40]), cache, layers)
    small(small.embed(ids.flip(0)), cache, layers)  # grows, and is taken back with what it wrote
    cache.truncate(40)
    parts = [small(small.embed(ids[at : at + 11]), cache, layers) for at in range(40, 150, 11)]
    torch.testing.assert_close(torch.cat(parts), whole[40:], atol=1e-5, rtol=1e-5)


def test_a_closed_cache_frees_its_memory_and_refuses_use(small: GlmModel) -> None:
    layers = LayerRange(0, 2)
    cache: TorchKvCache = small.new_cache(layers, 4)
    small(small.embed(torch.arange(3)), cache, layers)
    assert cache.bytes_reserved() == 2 * 2 * 4 * 2 * 16 * 4  # K and V, layers, positions, heads, head_dim, bytes
    cache.close()
    cache.close()
    assert cache.bytes_reserved() == 0
    with pytest.raises(InternalError, match="closed"):
        small(torch.zeros(1, 64), cache, layers)
