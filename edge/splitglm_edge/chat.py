"""A chat: messages and caches that live from turn to turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from splitglm_edge.generation import Generation
from splitglm_glm.chat import Message

if TYPE_CHECKING:
    from splitglm_edge.agent import Agent


@dataclass(frozen=True, slots=True)
class _Said:
    """A reply as it was heard."""

    asked: list[Message]
    prompt: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str

    @property
    def spoken(self) -> list[Message]:
        """The conversation with this reply."""
        return [*self.asked, Message(role="assistant", content=self.text)]


class Chat:
    """Turns of one conversation. Which replies count is said at ``ChatReply``."""

    def __init__(self, agent: Agent, system: str | None) -> None:
        self._agent = agent
        self._conversation = agent.new_conversation()
        self.messages: list[Message] = [Message(role="system", content=system)] if system else []
        self._last: _Said | None = None

    def say(self, text: str, **options: Any) -> ChatReply:
        """The reply to a user message; ``options`` are those of ``Agent.generate``."""
        asked = [*self.messages, Message(role="user", content=text)]
        ids = self._encode(asked)
        return ChatReply(self, asked, self._agent.generate(ids, conversation=self._conversation, **options))

    def close(self) -> None:
        self._agent.end_conversation(self._conversation)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _encode(self, asked: list[Message]) -> list[int]:
        """Token ids of the conversation with the last reply as the model said it.

        The same text can be cut into other tokens than the model chose. Then everything from there on would be run
        and sent again, and the model would read what it never said.
        """
        ids = self._agent.encode(asked)
        last = self._last
        if last is None or self.messages != last.spoken:
            return ids  # the first turn, or the caller rewrote the past
        tokenizer, said = self._agent.tokenizer, last.token_ids
        before = self._agent.encode(last.asked)
        controls = frozenset(tokenizer.control_tokens.values())
        end = next((at for at in range(len(before), len(ids)) if ids[at] in controls), len(ids))
        same_start = ids[: len(before)] == before
        if not same_start or tokenizer.decode(ids[len(before) : end]) != last.text:
            return ids  # the template changes what was said
        if said[-1] in controls:
            said = said[:-1]  # the template writes the end of a reply itself
        if tokenizer.decode(list(said)) != last.text:
            return ids  # cut short by a stop string
        return [*last.prompt, *said, *ids[end:]]

    def _heard(self, said: _Said) -> None:
        self.messages, self._last = said.spoken, said


class ChatReply:
    """A ``Generation`` that enters the chat's messages when it ends: read to its end, cancelled, closed or dropped.

    What failed or was discarded does not count.
    """

    def __init__(self, chat: Chat, asked: list[Message], generation: Generation) -> None:
        self.generation = generation
        self.asked = asked
        self._chat = chat
        self._counting = threading.Lock()
        self._decided = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self.generation)
        except StopIteration:
            self._count()
            raise
        except BaseException:
            self.discard()
            raise

    def close(self) -> None:
        """End the reply now; what was said so far counts. May come from any thread."""
        self.generation.close()
        self._count()

    def discard(self) -> None:
        """End the reply now; nothing of it counts."""
        with self._counting:
            self._decided = True
        self.generation.close()

    def _count(self) -> None:
        with self._counting:
            first, self._decided = not self._decided, True
        if first and self.generation.token_ids:
            self._chat._heard(self._said())

    def _said(self) -> _Said:
        generation = self.generation
        return _Said(self.asked, generation.prompt, tuple(generation.token_ids), generation.text)

    def __del__(self) -> None:
        # Dropped in the middle, it counts like a closed one. The generation ends itself; here no lock may be taken.
        if getattr(self, "_decided", True) or not self.generation.token_ids:
            return
        self._chat._heard(self._said())
