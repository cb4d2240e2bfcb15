"""A chat: the next turn runs and sends only what is new (goal S7), and remembers what was said."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from running_cloud import RunningCloud

from splitglm_core.errors import InputError, LinkError, NoFeasiblePlan
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


@pytest.mark.parametrize("fault", [LinkError("for the test"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_reply_that_failed_in_the_middle_does_not_count(
    agent: Agent, fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, count = agent._stack.logits, 0

    def fails(hidden: Any) -> Any:
        nonlocal count
        count += 1
        if count > 5:
            raise fault
        return logits(hidden)

    with agent.chat() as chat:
        "".join(chat.say(QUESTIONS[0], **options("device")))
        before = list(chat.messages)
        with monkeypatch.context() as patch:
            patch.setattr(agent._stack, "logits", fails)
            reply = chat.say(QUESTIONS[1], **options("device"))
            with pytest.raises(type(fault)):
                "".join(reply)
            assert len(reply.generation.token_ids) == 5
            reply.close()
        del reply
        assert chat.messages == before
        "".join(chat.say(QUESTIONS[1], **options("device")))
        assert len(chat.messages) == 4


def test_a_discarded_reply_does_not_count(agent: Agent) -> None:
    with agent.chat() as chat:
        reply = chat.say(QUESTIONS[0], **options("split"))
        next(iter(reply))
        reply.discard()
        reply.close()
        assert "".join(reply) == ""
        del reply
        assert chat.messages == []
        "".join(chat.say(QUESTIONS[1], **options("split")))
        assert [message.content for message in chat.messages][:1] == [QUESTIONS[1]]


def test_a_reply_may_be_closed_by_another_thread_than_its_reader(
    agent: Agent, cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitglm_edge.remote import RemoteSession

    with agent.chat() as chat:
        reply = chat.say(QUESTIONS[0], **options("split", max_tokens=200))
        heard = next(iter(reply))
        waiting, go_on = threading.Event(), threading.Event()
        cloud.server.executor._commands.put(lambda _: go_on.wait(60) and None)
        wait = RemoteSession.wait
        monkeypatch.setattr(RemoteSession, "wait", lambda self: (waiting.set(), wait(self))[1])
        errors: list[BaseException] = []

        def run(work: Any) -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        reader = threading.Thread(target=run, args=(lambda: list(reply),))
        reader.start()
        assert waiting.wait(30)  # the reader is in the middle of a step
        closer = threading.Thread(target=run, args=(reply.close,))
        closer.start()
        go_on.set()
        reader.join(60)
        closer.join(60)
        assert not reader.is_alive() and not closer.is_alive() and errors == []
        assert len(reply.generation.token_ids) < 200
        assert chat.messages[-1].content == reply.generation.text and reply.generation.text.startswith(heard)


def test_a_caches_chunks_that_differ_or_an_unknown_cloud_half_are_no_warm_session(agent: Agent) -> None:
    """What the policy believes to be kept is what the conversation keeps."""
    from splitglm_edge.planning import warm_for

    talk = agent.new_conversation()
    ids = [7] * 40
    agent.generate(ids, conversation=talk, **options("split")).result()
    assert warm_for(talk, [*ids, 1]) is not None
    for chunk, kept in ((16, 39), (8, 0), (8, 39)):
        again = agent.generate(ids, conversation=talk, **options("split", chunk_tokens=chunk))
        again.result()
        assert again.stats is not None and again.stats.kept_tokens == kept
    assert talk.decoder is not None
    talk.decoder.usable = False
    assert warm_for(talk, [*ids, 1]) is None
    agent.end_conversation(talk)
