"""What a caller may say, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from splitglm_core.errors import InputError
from splitglm_glm.chat import ChatTemplate, Message
from splitglm_glm.tokenizer import GlmTokenizer

Prompt = str | Sequence[Message] | Sequence[int]


class PromptEncoder:
    """Prompts of one model. Thread-safe.

    Args:
        directory: of the checkpoint, whose chat template is read when first needed.
        vocab: token ids of the model.
    """

    def __init__(self, tokenizer: GlmTokenizer, directory: Path, vocab: int) -> None:
        self._tokenizer = tokenizer
        self._directory = directory
        self._vocab = vocab
        self._template: ChatTemplate | None = None

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The token ids of a prompt; ``raw`` takes text as it is, without the chat template.

        Raises:
            InputError: empty, neither text, messages nor ids, ids outside the vocabulary, or bytes that this model's
                vocabulary cannot express.
        """
        if isinstance(prompt, str):
            self._check_expressible(prompt)
            if raw:
                return _not_empty(self._tokenizer.encode(prompt, with_prefix=True) if prompt else [])
            if not prompt:
                return _not_empty([])
            prompt = [Message(role="user", content=prompt)]
        items = list(prompt)
        messages = [item for item in items if isinstance(item, Message)]
        if items and len(messages) == len(items):
            for message in messages:
                self._check_expressible(message.content)
            if self._template is None:
                self._template = ChatTemplate.open(self._directory)
            return _not_empty(self._template.encode(self._tokenizer, messages))
        ids = [item for item in items if isinstance(item, int)]
        if len(ids) != len(items):
            raise InputError("a prompt is text, a list of messages or a list of token ids")
        if not all(0 <= token < self._vocab for token in ids):
            raise InputError(f"a token id is outside [0, {self._vocab})")
        return _not_empty(ids)

    def _check_expressible(self, text: str) -> None:
        lost = self._tokenizer.lost_bytes(text)
        if lost:
            names = ", ".join(f"0x{byte:02x}" for byte in lost)
            raise InputError(
                f"the prompt holds bytes that this model's vocabulary cannot express: {names}",
                "remove those characters",
            )


def _not_empty(ids: list[int]) -> list[int]:
    if not ids:
        raise InputError("the prompt is empty", "say something")
    return ids
