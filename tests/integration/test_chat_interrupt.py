"""The command's chat does with an interrupted reply what it says it does."""

from __future__ import annotations

import io
import sys

import pytest
from pair import Pair

from splitglm_cli.chat import _Talk
from splitglm_cli.reply_options import ReplyOptions
from splitglm_core.plan import Privacy


class Interrupting(io.StringIO):
    """A terminal at which Ctrl-C is pressed twice while a piece of the reply is written."""

    pieces = 3

    def write(self, text: str) -> int:
        self.pieces -= 1
        if self.pieces == 0:
            raise KeyboardInterrupt
        return super().write(text)


def options() -> ReplyOptions:
    return ReplyOptions.make(
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        seed=None,
        max_tokens=40,
        stop=None,
        ignore_eos=True,
        privacy=Privacy.LOCAL,
        split=None,
        codec=None,
        deadline=None,
        chunk=16,
    )


def test_nothing_is_kept_of_a_reply_that_was_interrupted_at_once(
    glm: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = _Talk(glm.agent, options(), None, quiet=True)
    talk._answer("hello")
    assert [message.role for message in talk._chat.messages] == ["user", "assistant"]
    before = list(talk._chat.messages)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Interrupting())
        talk._answer("and then?")
    assert "nothing of it is kept" in capsys.readouterr().err
    assert talk._chat.messages == before
    talk._answer("and now?")
    assert len(talk._chat.messages) == 4
    talk._chat.close()
