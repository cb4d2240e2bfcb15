"""Text to token ids and back, for byte-level BPE tokenizers (GLM-Edge, GLM-4 and later, the demo model).

Text is data: ``<|user|>`` typed by a person becomes ordinary tokens, never the control token, unless the caller asks.
Decoding is exact on bytes, so text can be streamed token by token without ever showing half a character.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models

from splitglm_core.errors import InputError, ModelInvalid
from splitglm_glm.strict_json import read_object
from splitglm_glm.tensor_files import contained_file

TOKENIZER_FILE: Final = "tokenizer.json"
TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"
MAX_TEXT_BYTES: Final = 4 << 20
MAX_TOKENIZER_BYTES: Final = 64 << 20
_MAX_JSON_BYTES: Final = 4 << 20
# Some published files forget to mark role tokens as special; by their form they are.
_ROLE_FORM: Final = re.compile(r"<\|[^|<>\s]+\|>")
_ORIGINAL_FILES: Final = ("tokenizer.model", "ice_text.model", "tokenization_chatglm.py")


class GlmTokenizer:
    """A tokenizer; make one with ``GlmTokenizer.open``. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: tuple[int, ...] = ()) -> None:
        """Take over ``tokenizer``, which must be byte-level BPE.

        Raises:
            ModelInvalid: another kind of tokenizer.
        """
        if not isinstance(tokenizer.model, models.BPE) or not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise ModelInvalid("the tokenizer is not byte-level BPE", "use a GLM-Edge, GLM-4 or later checkpoint")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        added = tokenizer.get_added_tokens_decoder()
        self._hidden = frozenset(token_id for token_id, token in added.items() if token.special)
        control = {i: token for i, token in added.items() if token.special or _ROLE_FORM.fullmatch(token.content)}
        tokenizer.add_special_tokens([_as_special(token) for i, token in control.items() if i not in self._hidden])
        tokenizer.encode_special_tokens = True  # i.e. as if they were ordinary text; see encode
        self._tokenizer = tokenizer
        self._bytes: dict[int, bytes] = {}
        self.control_tokens: Mapping[str, int] = {token.content: token_id for token_id, token in control.items()}
        """Ids of the tokens that text can only produce when it is allowed to, by their text."""
        self.control_pattern = _pattern(control.values())
        """Finds control tokens in text; its group 1 is the token, around it what the token swallows."""
        self.eos_token_ids = eos_token_ids
        """Tokens that end an answer, ascending."""
        self.missing_bytes = frozenset(b for c, b in _BYTE_OF.items() if tokenizer.token_to_id(c) is None)
        """Bytes that no token of the vocabulary can express."""

    @classmethod
    def open(cls, directory: Path) -> GlmTokenizer:
        """The tokenizer of the checkpoint in ``directory``.

        Raises:
            ModelInvalid: no ``tokenizer.json``, damaged, or not byte-level BPE.
        """
        path = directory / TOKENIZER_FILE
        if not path.exists():
            original = next((name for name in _ORIGINAL_FILES if (directory / name).exists()), None)
            if original:
                raise ModelInvalid(
                    f"{directory} has the original ChatGLM tokenizer ({original}) and no {TOKENIZER_FILE}",
                    "use the converted repository of the model, e.g. zai-org/glm-4-9b-chat-hf or "
                    "zai-org/glm-edge-1.5b-chat",
                )
            raise ModelInvalid(f"{directory} has no {TOKENIZER_FILE}", "fetch the checkpoint again")
        if contained_file(directory, TOKENIZER_FILE).stat().st_size > MAX_TOKENIZER_BYTES:
            raise ModelInvalid(f"{path} is longer than {MAX_TOKENIZER_BYTES} bytes", "use the published file")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception for anything it cannot read
            raise ModelInvalid(f"{path} is not a tokenizer: {str(error)[:200]}", "fetch the file again") from None
        return cls(tokenizer, _eos_token_ids(directory, tokenizer))

    @property
    def vocab_size(self) -> int:
        """Number of ids that have a token; a model's vocabulary may be padded beyond it."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, *, allow_special: bool = False, with_prefix: bool = False) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: at most 4 MiB of UTF-8.
            allow_special: read control tokens in the text as such. Only for text that no user wrote.
            with_prefix: put before it what the tokenizer puts before a raw prompt (GLM: ``[gMASK]<sop>``).

        Raises:
            InputError: too long, or not Unicode text (an unpaired surrogate).
        """
        _bounded_utf8(text)
        ids = self._prefix() if with_prefix else []
        if not allow_special:
            return ids + self._encode_plain(text)
        at = 0
        for match in self.control_pattern.finditer(text):
            ids += self._encode_plain(text[at : match.start()])
            ids.append(self.control_tokens[match.group(1)])
            at = match.end()
        return ids + self._encode_plain(text[at:])

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD. Ids without a token count as nothing.

        Args:
            skip_special: leave out the tokens that the tokenizer's file marks as special.
        """
        return b"".join(self.token_bytes(i, skip_special=skip_special) for i in ids).decode("utf-8", "replace")

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder for ids that come one at a time."""
        return StreamDecoder(self, skip_special=skip_special)

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """The bytes that a token stands for; none for special tokens (unless wanted) and ids without a token."""
        if skip_special and token_id in self._hidden:
            return b""
        known = self._bytes.get(token_id)
        if known is None:
            token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 2**32 else None
            known = self._bytes[token_id] = _bytes_of(token or "")
        return known

    def lost_bytes(self, text: str) -> tuple[int, ...]:
        """The bytes of ``text`` that the vocabulary cannot express, ascending; encoding drops them.

        Raises:
            InputError: as ``encode``.
        """
        return tuple(sorted(self.missing_bytes.intersection(_bounded_utf8(text))))

    def _encode_plain(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def _prefix(self) -> list[int]:
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        first = self._encode_plain("a")[:1]
        return list(whole[: whole.index(first[0])]) if first and first[0] in whole else []


class StreamDecoder:
    """Turns ids into text as they come. The pieces joined are exactly ``decode`` of all ids."""

    def __init__(self, tokenizer: GlmTokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is complete now; empty while a character is half said."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id, skip_special=self._skip_special))

    def flush(self) -> str:
        """The end: U+FFFD if the last character never was completed."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def eos_token_ids(directory: Path) -> tuple[int, ...]:
    """Tokens that end an answer: what config, generation config and tokenizer config name, together, ascending.

    Raises:
        ModelInvalid: the tokenizer or one of the files is damaged.
    """
    return GlmTokenizer.open(directory).eos_token_ids


def _eos_token_ids(directory: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        value = _optional_json(directory, name).get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if len(ids) > 256 or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
            raise ModelInvalid(f"eos_token_id of {directory / name} is not a list of token ids", "fetch it again")
        found.update(ids)
    token = _optional_json(directory, TOKENIZER_CONFIG_FILE).get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str) and (token_id := tokenizer.token_to_id(token)) is not None:
        found.add(token_id)
    return tuple(sorted(found))


def _optional_json(directory: Path, name: str) -> dict[str, Any]:
    if not (directory / name).exists():
        return {}
    return read_object(contained_file(directory, name), _MAX_JSON_BYTES)


def _bounded_utf8(text: str) -> bytes:
    # A character is at least one byte, so the first test bounds the memory that the second needs.
    if len(text) <= MAX_TEXT_BYTES:
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"the text holds an unpaired surrogate at character {error.start}") from None
        if len(data) <= MAX_TEXT_BYTES:
            return data
    raise InputError(f"the text is longer than {MAX_TEXT_BYTES:,} bytes", "split it into several requests")


def _as_special(token: AddedToken) -> AddedToken:
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=True,
    )


def _pattern(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """Leftmost, longest match, as the tokenizers package does it."""
    alternatives = []
    for token in sorted(tokens, key=lambda token: -len(token.content)):
        body = re.escape(token.content)
        if token.single_word:
            body = rf"(?<!\w){body}(?!\w)"
        alternatives.append((r"\s*" if token.lstrip else "", body, r"\s*" if token.rstrip else ""))
    before = r"\s*" if any(a[0] for a in alternatives) else ""
    after = r"\s*" if any(a[2] for a in alternatives) else ""
    if any(bool(a[0]) != bool(before) or bool(a[2]) != bool(after) for a in alternatives):
        raise ModelInvalid("control tokens of this tokenizer treat the spaces around them in different ways")
    return re.compile(f"{before}({'|'.join(a[1] for a in alternatives)}){after}" if alternatives else r"(?!)")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019, ``bytes_to_unicode``), by character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF: Final = _byte_alphabet()


def _bytes_of(token: str) -> bytes:
    values = [_BYTE_OF.get(character) for character in token]
    # An added token with a character outside the alphabet stands for its own text, as in the tokenizers package.
    return token.encode("utf-8") if None in values else bytes(value for value in values if value is not None)
