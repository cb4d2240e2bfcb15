"""A chat: messages and caches that live from turn to turn."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from splitglm_edge.generation import Generation
from splitglm_glm.chat import Message

if TYPE_CHECKING:
    from splitglm_edge.agent import Agent


class Chat:
    """Turns of one conversation. A reply counts when it has been read to its end or was cancelled."""

    def __init__(self, agent: Agent, system: str | None) -> None:
        self._agent = agent
        self._conversation = agent.new_conversation()
        self.messages: list[Message] = [Message(role="system", content=system)] if system else []
        self._last: ChatReply | None = None

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
        tokenizer, said = self._agent.tokenizer, last.generation.token_ids
        before = self._agent.encode(last.asked)
        controls = frozenset(tokenizer.control_tokens.values())
        end = next((at for at in range(len(before), len(ids)) if ids[at] in controls), len(ids))
        same_start = ids[: len(before)] == before
        if not same_start or tokenizer.decode(ids[len(before) : end]) != last.generation.text:
            return ids  # the template changes what was said
        if said[-1] in controls:
            said = said[:-1]  # the template writes the end of a reply itself
        if tokenizer.decode(said) != last.generation.text:
            return ids  # cut short by a stop string
        return [*last.generation.prompt, *said, *ids[end:]]

    def _heard(self, reply: ChatReply) -> None:
        self.messages, self._last = list(reply.spoken), reply


class ChatReply:
    """A ``Generation`` that enters the chat's messages when it ends."""

    def __init__(self, chat: Chat, asked: list[Message], generation: Generation) -> None:
        self.generation = generation
        self.asked = asked
        self._chat = chat
        self._pieces = self._run()

    @property
    def spoken(self) -> list[Message]:
        """The conversation with this reply."""
        return [*self.asked, Message(role="assistant", content=self.generation.text)]

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """End the reply now; what was said so far counts."""
        self.generation.cancel()
        self._pieces.close()
        self.generation.close()

    def _run(self) -> Generator[str, None, None]:
        try:
            yield from self.generation
        finally:
            self.generation.close()
            if self.generation.token_ids:
                self._chat._heard(self)
