"""A chat: messages and caches that live from turn to turn."""

from __future__ import annotations

from collections.abc import Iterator
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

    def say(self, text: str, **options: Any) -> ChatReply:
        """The reply to a user message; ``options`` are those of ``Agent.generate``."""
        asked = [*self.messages, Message(role="user", content=text)]
        return ChatReply(self, asked, self._agent.generate(asked, conversation=self._conversation, **options))

    def close(self) -> None:
        self._agent.end_conversation(self._conversation)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class ChatReply:
    """A ``Generation`` that enters the chat's messages when it ends."""

    def __init__(self, chat: Chat, asked: list[Message], generation: Generation) -> None:
        self.generation = generation
        self._chat = chat
        self._asked = asked

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self.generation
        finally:
            self.generation.close()
            if self.generation.token_ids:
                self._chat.messages = [*self._asked, Message(role="assistant", content=self.generation.text)]
