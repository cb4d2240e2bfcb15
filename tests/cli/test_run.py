"""``run``: one prompt, by every kind of plan, and the account of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from cli_runs import CONTEXT, LAYERS, Run, Served, finish, one_line_error, serve, start

GREEDY = ("--max-tokens", "12", "--ignore-eos")


def answer(splitglm: Run, *arguments: str) -> dict[str, Any]:
    outcome = splitglm("run", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.document()
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def textless(tiny: str) -> Iterator[Served]:
    """A cloud that holds two middle layers and no text."""
    yield from serve(tiny, "--no-text", "--layers", "1:3")


def test_the_text_goes_to_stdout_and_the_account_to_stderr(splitglm: Run, tiny: str) -> None:
    outcome = splitglm("run", tiny, "hello", *GREEDY)
    assert outcome.code == 0
    assert outcome.out.rstrip("\n") == answer(splitglm, tiny, "hello", *GREEDY)["text"].rstrip("\n")
    for word in ("plan", "why", "TTFT", "when the plan was ready", "tok/s", "bytes", "stages", "device only"):
        assert word in outcome.err
    assert splitglm("run", tiny, "hello", *GREEDY, "--quiet").err == ""


def test_the_document_says_what_ran_and_why(splitglm: Run, tiny: str) -> None:
    document = answer(splitglm, tiny, "hello", *GREEDY)
    assert document["model"] == tiny and len(document["token_ids"]) == 12
    assert document["plan"]["arm"] == "device" and "Chosen: device only" in document["why"]
    statistics = document["statistics"]
    assert statistics["new_tokens"] == 12 and statistics["finish"] == "length" and statistics["seed"] is None
    assert statistics["bytes_up"] == 0 and statistics["ttft_s"] > 0 and "front" in statistics["stage_s"]


@pytest.mark.parametrize(
    ("flags", "arm", "s", "t", "head"),
    [
        (("--split", "0", "--privacy", "open"), "cloud", 0, LAYERS, "cloud"),
        (("--split", "2", "--privacy", "open"), "split", 2, LAYERS, "cloud"),
        (("--split", "2", "--privacy", "no-prompt"), "split", 2, LAYERS, "cloud"),
        (("--split", "2"), "ushape", 2, LAYERS, "device"),
        (("--split", "1:3"), "ushape", 1, 3, "device"),
        (("--split", str(LAYERS)), "device", LAYERS, LAYERS, "device"),
    ],
)
def test_every_cut_gives_the_same_answer_over_an_exact_codec(
    splitglm: Run, tiny: str, cloud: Served, flags: tuple[str, ...], arm: str, s: int, t: int, head: str
) -> None:
    alone = answer(splitglm, tiny, "hello", *GREEDY)
    document = answer(splitglm, tiny, "hello", *GREEDY, *cloud.trusted, "--codec", "fp32", *flags)
    plan = document["plan"]
    assert (plan["arm"], plan["s"], plan["t"], plan["head"]) == (arm, s, t, head)
    assert document["token_ids"] == alone["token_ids"]
    assert (document["statistics"]["bytes_up"] > 0) == (arm != "device")
    assert document["statistics"]["fallbacks"] == []


def test_the_codec_decides_the_bytes(splitglm: Run, tiny: str, cloud: Served) -> None:
    up = [
        answer(splitglm, tiny, "hello", *GREEDY, *cloud.trusted, "--split", "2", "--codec", codec)["statistics"][
            "bytes_up"
        ]
        for codec in ("fp32", "bf16", "int8")
    ]
    assert up[0] > up[1] > up[2]


def test_a_cloud_without_text_serves_u_shapes_and_nothing_else(splitglm: Run, tiny: str, textless: Served) -> None:
    assert textless.ready["layers"] == [1, 3] and not textless.ready["embedding"] and not textless.ready["head"]
    fit = answer(splitglm, tiny, "hello", *GREEDY, *textless.trusted, "--split", "1:3", "--codec", "fp32")
    assert fit["token_ids"] == answer(splitglm, tiny, "hello", *GREEDY)["token_ids"]
    refused = splitglm("run", tiny, "hello", *textless.trusted, "--split", "0", "--privacy", "open")
    assert refused.code == 78
    assert "the cloud holds no" in one_line_error(refused)


def test_a_privacy_is_never_widened_by_a_cut(splitglm: Run, tiny: str, cloud: Served) -> None:
    outcome = splitglm("run", tiny, "hello", *cloud.trusted, "--split", "0")
    assert outcome.code == 78 and "--privacy open" in one_line_error(outcome)


def test_the_prompt_comes_from_stdin_when_none_is_given(tiny: str, splitglm: Run) -> None:
    expected = splitglm("run", tiny, "from a pipe", *GREEDY, "--quiet").out
    for given in ((), ("-",)):
        process = start("run", tiny, *given, *GREEDY, "--quiet")
        out, err = process.communicate("from a pipe\n", timeout=60)
        assert (process.returncode, out, err) == (0, expected, "")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("",), 64, "empty"),
        ((" \n",), 64, "empty"),
        (("q" * (CONTEXT + 1),), 65, f"{CONTEXT}"),
        (("hi", "--temperature", "-1"), 64, "temperature"),
        (("hi", "--top-p", "0"), 64, "top_p"),
        (("hi", "--seed", str(2**64), "--temperature", "1"), 64, "seed"),
        (("hi", "--split", "9"), 64, "4 layers"),
        (("hi", "--split", "3:1"), 64, "1 <= S < T"),
        (("hi", "--split", "half"), 64, "S:T"),
        (("hi", "--context", "100000"), 64, "context"),
        (("hi", "--split", "2"), 78, "no cloud"),
        (("hi", "--cloud", "somewhere"), 64, "HOST:PORT"),
        (("hi", "--cloud", "h:1", "--cloud-key", "sglm1nonsense"), 64, "sglm1"),
        (("hi", "--cloud-key", "sglm1x"), 64, "--cloud"),
        (("hi", "--cloud", "h:1", "--psk-file", "absent.code"), 71, "absent.code"),
        (("hi", "--raw", "--system", "be brief"), 64, "--system"),
    ],
)
def test_a_bad_request_is_one_line_that_says_what_to_do(
    splitglm: Run, tiny: str, arguments: tuple[str, ...], code: int, said: str
) -> None:
    outcome = splitglm("run", tiny, *arguments)
    assert outcome.code == code, outcome.err
    line = one_line_error(outcome)
    assert said in line and ("Try: " in line or "is outside [" in line or "is outside (" in line)


def test_bytes_that_are_no_text_are_refused(tiny: str) -> None:
    process = start("run", tiny, text=False)
    out, err = process.communicate(b"\xff\xfe", timeout=60)
    assert process.returncode == 64 and out == b"" and b"not UTF-8" in err and err.count(b"\n") == 1


def test_the_same_seed_gives_the_same_answer_and_a_missing_one_is_reported(splitglm: Run, tiny: str) -> None:
    hot = ("--temperature", "1.5", *GREEDY)
    first = answer(splitglm, tiny, "hello", *hot)
    seed = first["statistics"]["seed"]
    assert isinstance(seed, int)
    again = answer(splitglm, tiny, "hello", *hot, "--seed", str(seed))
    assert again["token_ids"] == first["token_ids"]
    others = [answer(splitglm, tiny, "hello", *hot, "--seed", str(seed ^ bit))["token_ids"] for bit in (1, 2, 4)]
    assert any(ids != first["token_ids"] for ids in others)
    assert f"seed    {seed}" in splitglm("run", tiny, "hello", *hot, "--seed", str(seed)).err


def test_sampling_flags_reach_the_sampler_on_either_side(splitglm: Run, tiny: str, cloud: Served) -> None:
    flags = ("--temperature", "0.9", "--seed", "5", "--top-p", "0.9", "--top-k", "40", "--repetition-penalty", "1.2")
    flags += ("--frequency-penalty", "0.5", "--presence-penalty", "0.2", *GREEDY)
    here = answer(splitglm, tiny, "hello", *flags)
    there = answer(splitglm, tiny, "hello", *flags, *cloud.trusted, "--split", "0", "--privacy", "open")
    assert here["token_ids"] == there["token_ids"] != answer(splitglm, tiny, "hello", *GREEDY)["token_ids"]


def test_stop_raw_and_system_change_what_they_should(splitglm: Run, tiny: str) -> None:
    plain = answer(splitglm, tiny, "hello", *GREEDY)
    stop = plain["text"][-2:]
    stopped = answer(splitglm, tiny, "hello", *GREEDY, "--stop", "never in it", "--stop", stop)
    assert stopped["text"] == plain["text"][: plain["text"].index(stop)] != plain["text"]
    assert stopped["statistics"]["finish"] == "stop"
    raw = answer(splitglm, tiny, "hello", *GREEDY, "--raw")["statistics"]["prompt_tokens"]
    system = answer(splitglm, tiny, "hello", *GREEDY, "--system", "be brief")["statistics"]["prompt_tokens"]
    assert raw < plain["statistics"]["prompt_tokens"] < system


def test_a_flag_wins_over_its_variable_and_that_over_the_default(
    splitglm: Run, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITGLM_PRECISION", "fp32")
    assert answer(splitglm, tiny, "hello", *GREEDY)["token_ids"]
    assert splitglm("show", tiny, "--json").document()["graphs"]["fp32"]["parts"] > 0
    monkeypatch.setenv("SPLITGLM_PRECISION", "int3")
    assert splitglm("run", tiny, "hello").code == 2
    assert splitglm("run", tiny, "hello", "--precision", "int8", *GREEDY, "--quiet").code == 0


def test_a_terminal_gets_no_control_characters(tiny: str, home: object) -> None:
    """A random model writes ESC and the like sooner or later; a pipe gets them, a terminal does not."""
    read, write = os.openpty()
    flags = ("--max-tokens", "200", "--ignore-eos", "--temperature", "3", "--seed", "1", "--quiet")
    piped = finish(start("run", tiny, "hello", *flags))
    assert any(ord(c) < 32 and c not in "\n\t\r" for c in piped.out), "choose another seed"
    process = start("run", tiny, "hello", *flags, stdout=write)
    os.close(write)
    shown = b""
    try:
        while chunk := os.read(read, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(read)
    assert finish(process).code == 0
    assert len(shown) > 100 and not any(byte < 32 and byte not in b"\n\t\r" for byte in shown)
