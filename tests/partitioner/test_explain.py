"""Decisions in words and tables: every term that counts, and why not the others."""

from __future__ import annotations

from partitioner_factory import (
    POWER,
    drafting,
    make_cloud,
    make_device,
    make_link,
    make_request,
    pick,
    ushape,
)

from splitglm_core.plan import Codec, Privacy
from splitglm_partitioner import explain
from splitglm_partitioner.request import Warm

N = 12


def test_the_explanation_shows_every_arm_with_its_cost_or_its_reason() -> None:
    decision = pick(make_request(privacy=Privacy.NO_PROMPT, s_min=3))
    text = explain.table(decision)
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["arm", "s", "t", "codec"]
    assert lines[1].split()[:4] == ["split*", "3", "12", "int8"]
    assert {line.split()[0] for line in lines[2:4]} == {"ushape", "device"}
    assert "cloud: not allowed, no-prompt keeps prompt ids on the device" in lines
    words = explain.in_words(decision)
    assert "The cut is the lowest allowed; limited by privacy." in words and "round trip 40.0 ms" in words


def test_the_explanation_of_an_open_session_says_what_is_new() -> None:
    plan = ushape(N, 1, N, Codec.INT8)
    decision = pick(make_request(warm=Warm(plan=plan, cached_tokens=290)))
    assert "10 of 300 prompt tokens are new" in explain.in_words(decision)


def test_the_explanation_names_every_term_that_counts_and_no_other() -> None:
    device = make_device(N, power=POWER, seal_s_per_byte=1e-9, seal_s_per_record=1e-5)
    link = make_link(rtt_s=0.3, uplink_queue_s=0.5, promotion_s=0.2, window_bytes=14_600)
    cloud = make_cloud(N, sweep_s=1e-3, price_per_layer_token=1e-6)
    request = make_request(privacy=Privacy.NO_PROMPT, chunks=(32,))
    decision = pick(request, device=device, link=link, cloud=cloud, drafts=(drafting(),))
    lines = [line.split("  ")[0] for line in explain.terms_table(decision).splitlines()]
    assert lines == [
        *("term", "front", "drafting", "sealing", "uplink", "uplink queue", "slow start", "overhead", "round trip"),
        *("radio promotion", "cloud queue", "cloud sweep", "back", "downlink", "head", "TTFT, per token"),
    ]
    assert {"draft", "chunk", "energy", "price"} <= set(explain.table(decision).splitlines()[0].split())
    words = explain.in_words(decision)
    assert "lookup drafts 4 tokens per round." in words and "J on the device and a price of" in words
    plain = pick(make_request())
    assert not {"draft", "chunk", "energy", "price"} & set(explain.table(plain).splitlines()[0].split())
    assert "sealing" not in explain.terms_table(plain) and "slow start" not in explain.terms_table(plain)
