"""Conversations to text and token ids through the chat template that came with the model.

What people wrote stays data. A content that spells ``<|user|>`` is encoded as those eight characters, never as the
control token; control tokens come from the template alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jinja2.exceptions import TemplateError

from splitglm_core.errors import InputError, ModelInvalid
from splitglm_glm.chat_sandbox import ChatEnvironment, ConversationRefused
from splitglm_glm.strict_json import read_object
from splitglm_glm.tensor_files import contained_file
from splitglm_glm.tokenizer import MAX_TEXT_BYTES, TOKENIZER_CONFIG_FILE, GlmTokenizer

TEMPLATE_FILE: Final = "chat_template.jinja"
LEGACY_TEMPLATE_FILE: Final = "chat_template.json"
MAX_TEMPLATE_BYTES: Final = 256 << 10
MAX_MESSAGES: Final = 4096
ROLES: Final = frozenset({"system", "user", "assistant", "tool", "observation"})
_MAX_JSON_BYTES: Final = 4 << 20
_TOKEN_NAMES: Final = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
# Private-use characters of plane 16 stand for what contents must not be able to spell while the template runs.
_FIRST_STAND_IN: Final = 0x100000
_LAST_STAND_IN: Final = 0x10FFFD

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def __post_init__(self) -> None:
        # The role becomes part of a control token in many templates, so it is never free text.
        if self.role not in ROLES:
            raise InputError(f"{self.role[:40]!r} is not a role", f"use one of {', '.join(sorted(ROLES))}")


class ChatTemplate:
    """A model's chat template; make one with ``ChatTemplate.open``.

    Args:
        source: Jinja, at most 256 KiB.
        variables: the special tokens that templates refer to (``bos_token`` and the like).
        clock: what ``strftime_now`` reads; local time by default.
    """

    def __init__(self, source: str, variables: Mapping[str, str] | None = None, clock: Clock = datetime.now) -> None:
        """Raises ``ModelInvalid`` when the template does not compile or uses what is not allowed."""
        if len(source.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
            raise ModelInvalid(f"the chat template is longer than {MAX_TEMPLATE_BYTES} bytes", "use the published one")
        self._source = source
        self._variables = dict(variables or {})
        self._environment = ChatEnvironment()
        self._environment.globals["strftime_now"] = lambda form: clock().strftime(str(form)[:100])
        try:
            self._template = self._environment.compiled(source)
        except (TemplateError, SyntaxError, RecursionError, ValueError) as error:
            raise _refused(error) from None

    @classmethod
    def open(cls, directory: Path, clock: Clock = datetime.now) -> ChatTemplate:
        """The template of the checkpoint in ``directory``: ``chat_template.jinja``, else from its JSON files.

        Raises:
            InputError: the model has none.
            ModelInvalid: damaged, or not within bounds.
        """
        config = _json(directory, TOKENIZER_CONFIG_FILE)
        variables = {name: text for name in _TOKEN_NAMES if (text := _token_text(config.get(name))) is not None}
        if (directory / TEMPLATE_FILE).exists():
            data = _read(contained_file(directory, TEMPLATE_FILE))
            return cls(data, variables, clock)
        for raw in (config, _json(directory, LEGACY_TEMPLATE_FILE)):
            if raw.get("chat_template") is not None:
                return cls(_select(raw["chat_template"], directory), variables, clock)
        raise InputError(f"the model in {directory} has no chat template", "use --raw to send the text as it is")

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as the text that the model was trained on.

        Raises:
            InputError: no or too many messages, or a conversation that the template rejects.
            ModelInvalid: the template fails, or does not stay within its bounds.
        """
        self._check(messages)
        return self._run([message.content for message in messages], messages, add_generation_prompt)

    def encode(
        self, tokenizer: GlmTokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of the conversation; only the template can write control tokens.

        Where no content spells a control token the ids equal ``tokenizer.encode(render(...), allow_special=True)``.

        Raises:
            InputError, ModelInvalid: as ``render``.
        """
        self._check(messages)
        contents = [message.content for message in messages]
        tokens = sorted(tokenizer.control_tokens, key=lambda token: (-len(token), token))
        edges = sorted({token[0] for token in tokens} | {token[-1] for token in tokens})
        if not any(edge in content for content in contents for edge in edges):
            return tokenizer.encode(self._run(contents, messages, add_generation_prompt), allow_special=True)
        stand_ins = self._stand_ins(contents, [*tokens, *edges])
        # As a rule only whole control tokens are hidden from the template, so that it sees markup of other kinds. If
        # it then makes other control tokens than with every edge character hidden, some content helped to spell one.
        spelt = self._masked(contents, messages, add_generation_prompt, {t: stand_ins[t] for t in tokens})
        strict = self._masked(contents, messages, add_generation_prompt, {e: stand_ins[e] for e in edges})
        pattern = tokenizer.control_pattern
        masked = spelt if _controls(pattern, spelt) == _controls(pattern, strict) else strict
        original = {stand_in: text for text, stand_in in stand_ins.items()}
        restore = re.compile("|".join(map(re.escape, original)))
        ids: list[int] = []
        at = 0
        for match in [*pattern.finditer(masked), None]:
            between = masked[at : match.start() if match else len(masked)]
            ids += tokenizer.encode(restore.sub(lambda m: original[m.group()], between))
            if match:
                ids.append(tokenizer.control_tokens[match.group(1)])
                at = match.end()
        return ids

    def _masked(
        self, contents: list[str], messages: Sequence[Message], prompt: bool, stand_ins: Mapping[str, str]
    ) -> str:
        hide = re.compile("|".join(map(re.escape, stand_ins)))  # longest first, as ``stand_ins`` is ordered
        hidden = [hide.sub(lambda m: stand_ins[m.group()], content) for content in contents]
        return self._run(hidden, messages, prompt)

    def _stand_ins(self, contents: list[str], texts: list[str]) -> dict[str, str]:
        """A character for each of ``texts`` that occurs neither in a content nor in the template."""
        taken = set().union(self._source, *contents)
        free = (chr(i) for i in range(_FIRST_STAND_IN, _LAST_STAND_IN) if chr(i) not in taken)
        found = dict(zip(dict.fromkeys(texts), free, strict=False))
        if len(found) < len(set(texts)):
            raise InputError("the conversation uses all private-use characters of Unicode", "remove some of them")
        return found

    def _run(self, contents: list[str], messages: Sequence[Message], add_generation_prompt: bool) -> str:
        turns = [{"role": m.role, "content": text} for m, text in zip(messages, contents, strict=True)]
        variables = self._variables | {"messages": turns, "add_generation_prompt": add_generation_prompt}
        try:
            return self._environment.run(self._template, variables)
        except ConversationRefused as error:
            raise InputError(f"the model's chat template rejects this conversation: {error}") from None
        except Exception as error:  # a template is a program: any exception of Python may come out of it
            raise _refused(error) from None

    @staticmethod
    def _check(messages: Sequence[Message]) -> None:
        if not 0 < len(messages) <= MAX_MESSAGES:
            raise InputError(f"a conversation has 1 to {MAX_MESSAGES} messages, not {len(messages)}")
        if sum(len(message.content) for message in messages) > MAX_TEXT_BYTES:
            raise InputError(f"the conversation is longer than {MAX_TEXT_BYTES:,} bytes", "leave out early turns")


def _controls(pattern: re.Pattern[str], text: str) -> list[str]:
    return [match.group(1) for match in pattern.finditer(text)]


def _refused(error: Exception) -> ModelInvalid:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return ModelInvalid(f"the model's chat template is refused: {reason}", "use the published template, or --raw")


def _select(value: Any, directory: Path) -> str:
    """The template among the forms in which they are published: text, or a list of named ones."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        named = {
            item.get("name"): item["template"]
            for item in value
            if isinstance(item, dict) and isinstance(item.get("template"), str)
        }
        if "default" in named or len(named) == 1:
            return str(named.get("default") or next(iter(named.values())))
    raise ModelInvalid(f"the chat template in {directory} is neither text nor a list with a default one")


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _json(directory: Path, name: str) -> dict[str, Any]:
    if not (directory / name).exists():
        return {}
    return read_object(contained_file(directory, name), _MAX_JSON_BYTES)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEMPLATE_BYTES + 1).decode("utf-8")
    except UnicodeDecodeError:
        raise ModelInvalid(f"{path} is not UTF-8", "fetch the file again") from None
