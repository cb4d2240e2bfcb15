"""A chat: the next turn runs and sends only what is new (goal S7), and remembers what was said."""

from __future__ import annotations

from typing import Any

import pytest
from running_cloud import RunningCloud

from splitglm_core.errors import InputError, NoFeasiblePlan
from splitglm_core.plan import Arm, Codec, Privacy
from splitglm_core.sampling import SamplingParams
from splitglm_edge import Agent
from splitglm_glm.chat import Message
from splitglm_partitioner.request import Fixed
from splitglm_wire import codec as wire_codec

CUTS = {
    "device": Fixed(arm=Arm.DEVICE),
    "cloud": Fixed(arm=Arm.CLOUD),
    "split": Fixed(arm=Arm.SPLIT, s=1),
    "ushape": Fixed(arm=Arm.USHAPE, s=1, t=3),
}
HIDDEN = 64
QUESTIONS = ("hello there, who are you?", "name a fruit", "and another one, please")


def options(arm: str, **changes: Any) -> dict[str, Any]:
    return {
        "max_tokens": 12,
        "fixed": CUTS[arm],
        "codecs": (Codec.FP32,),
        "privacy": Privacy.OPEN,
        "chunk_tokens": 16,
        "sampling": SamplingParams(temperature=0.8, seed=11),
        "ignore_eos": True,
    } | changes


@pytest.mark.parametrize("arm", CUTS)
def test_a_turn_keeps_everything_but_the_newest_token(agent: Agent, arm: str) -> None:
    with agent.chat(system="be brief") as chat:
        known = 0
        for question in QUESTIONS:
            reply = chat.say(question, **options(arm))
            "".join(reply)
            stats = reply.generation.stats
            assert stats is not None
            assert stats.kept_tokens == max(0, known - 1)
            known = stats.prompt_tokens + stats.new_tokens
    assert [message.role for message in chat.messages] == ["system"] + ["user", "assistant"] * 3


@pytest.mark.parametrize("arm", ["cloud", "split", "ushape"])
def test_no_position_is_sent_twice(agent: Agent, arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in bytes: the payloads of a turn are those of its new positions and nothing more."""
    from splitglm_edge.remote import RemoteSession

    sent: list[int] = []
    step = RemoteSession.step

    def counted(self: RemoteSession, **values: Any) -> int:
        sent.append(len(values["payload"]))
        return step(self, **values)

    monkeypatch.setattr(RemoteSession, "step", counted)
    with agent.chat() as chat:
        for question in QUESTIONS:
            sent.clear()
            reply = chat.say(question, **options(arm))
            "".join(reply)
            stats = reply.generation.stats
            assert stats is not None
            new = stats.prompt_tokens - stats.kept_tokens
            if arm == "cloud":
                assert sum(sent) == 4 * new
            else:
                row = wire_codec.row_bytes(Codec.FP32, HIDDEN)
                assert sum(sent) == row * (new + stats.new_tokens - 1)
            # Records cost headers, padding and tags; a repeated prompt would cost more than that.
            assert stats.bytes_up < sum(sent) + 200 * (len(sent) + 4)


@pytest.mark.parametrize("arm", CUTS)
def test_a_chat_says_what_a_fresh_conversation_over_the_same_tokens_says(agent: Agent, arm: str) -> None:
    with agent.chat() as chat:
        "".join(chat.say(QUESTIONS[0], **options(arm)))
        reply = chat.say(QUESTIONS[1], **options(arm))
        said = "".join(reply)
        fresh = agent.generate(list(reply.generation.prompt), **options(arm))
        assert fresh.result() == said and fresh.token_ids == reply.generation.token_ids


def test_the_model_reads_its_own_tokens_and_not_another_cut_of_the_text(agent: Agent) -> None:
    """A random model says tokens that the tokenizer would never choose for the same text."""
    with agent.chat() as chat:
        first = chat.say(QUESTIONS[0], **options("device"))
        text = "".join(first)
        said = first.generation.token_ids
        assert agent.tokenizer.encode(text) != said  # else this test shows nothing
        second = chat.say(QUESTIONS[1], **options("device"))
        prompt = list(second.generation.prompt)
        before = list(first.generation.prompt)
        assert prompt[: len(before) + len(said)] == before + said


def test_a_cancelled_reply_counts_as_far_as_it_was_heard(agent: Agent) -> None:
    with agent.chat() as chat:
        reply = chat.say(QUESTIONS[0], **options("split"))
        pieces = iter(reply)
        heard = next(pieces)
        reply.close()
        assert chat.messages[-1] == Message(role="assistant", content=reply.generation.text)
        assert reply.generation.text.startswith(heard)
        "".join(chat.say(QUESTIONS[1], **options("split")))
        assert len(chat.messages) == 4


def test_a_reply_that_was_never_read_leaves_no_trace(agent: Agent) -> None:
    with agent.chat() as chat:
        chat.say(QUESTIONS[0], **options("device")).close()
        assert chat.messages == []
        "".join(chat.say(QUESTIONS[1], **options("device")))
        assert [message.content for message in chat.messages][:1] == [QUESTIONS[1]]


def test_a_failed_reply_leaves_the_chat_usable(agent: Agent) -> None:
    with agent.chat() as chat:
        "".join(chat.say(QUESTIONS[0], **options("device")))
        before = list(chat.messages)
        with pytest.raises(NoFeasiblePlan):
            "".join(chat.say(QUESTIONS[1], **options("cloud", privacy=Privacy.LOCAL)))
        assert chat.messages == before
        "".join(chat.say(QUESTIONS[1], **options("device")))
        assert len(chat.messages) == 4


def test_a_rewritten_history_is_read_as_it_is_written(agent: Agent) -> None:
    with agent.chat() as chat:
        "".join(chat.say(QUESTIONS[0], **options("device")))
        chat.messages[-1] = Message(role="assistant", content="something else entirely")
        reply = chat.say(QUESTIONS[1], **options("device"))
        "".join(reply)
        assert "something else entirely" in agent.tokenizer.decode(reply.generation.prompt)


def test_a_stop_string_hides_what_came_after_it_from_the_next_turn(agent: Agent) -> None:
    with agent.chat() as chat:
        whole = "".join(chat.say(QUESTIONS[0], **options("device")))
    stop = whole[4:6]
    with agent.chat() as chat:
        cut = "".join(chat.say(QUESTIONS[0], **options("device", stop=(stop,))))
        assert stop not in cut
        reply = chat.say(QUESTIONS[1], **options("device"))
        "".join(reply)
        assert list(reply.generation.prompt) == agent.encode(
            [
                Message(role="user", content=QUESTIONS[0]),
                Message(role="assistant", content=cut),
                Message(role="user", content=QUESTIONS[1]),
            ]
        )


def test_closing_a_chat_frees_both_sides(agent: Agent, cloud: RunningCloud) -> None:
    before = cloud.now(lambda: len(cloud.server.table))
    chat = agent.chat()
    "".join(chat.say(QUESTIONS[0], **options("split")))
    cloud.until(lambda: len(cloud.server.table) == before + 1)
    chat.close()
    chat.close()
    cloud.until(lambda: len(cloud.server.table) == before)
    with pytest.raises(InputError):
        "".join(chat.say(QUESTIONS[1], **options("split")))
