"""The options of one reply, checked before a model is opened, in the form that ``Agent.generate`` takes."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from splitglm_cli.options import CRITICALITIES
from splitglm_cli.split_option import SplitOption
from splitglm_core.criticality import Criticality
from splitglm_core.errors import InputError
from splitglm_core.plan import Codec, Privacy
from splitglm_core.sampling import SamplingParams

if TYPE_CHECKING:
    from splitglm_edge import Agent


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyOptions:
    """What ``run`` and ``chat`` have in common.

    Attributes:
        seed: of the noise, None for greedy decoding; given or drawn here, and reported with the statistics.
    """

    sampling: SamplingParams
    seed: int | None
    max_tokens: int
    stop: tuple[str, ...]
    ignore_eos: bool
    privacy: Privacy
    split: SplitOption | None
    codec: Codec | None
    deadline_s: float | None
    criticality: Criticality
    chunk_tokens: int

    @classmethod
    def make(
        cls,
        *,
        temperature: float,
        top_p: float,
        top_k: int,
        repetition_penalty: float,
        frequency_penalty: float,
        presence_penalty: float,
        seed: int | None,
        max_tokens: int,
        stop: list[str] | None,
        ignore_eos: bool,
        privacy: Privacy,
        split: str | None,
        codec: Codec | None,
        deadline: float | None,
        criticality: str = "critical",
        chunk: int,
    ) -> ReplyOptions:
        """Raises ``InputError`` for anything out of range."""
        if temperature != 0.0 and seed is None:
            seed = secrets.randbits(63)
        sampling = SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            seed=seed or 0,
        )
        return cls(
            sampling=sampling,
            seed=seed if temperature != 0.0 else None,
            max_tokens=max_tokens,
            stop=tuple(stop or ()),
            ignore_eos=ignore_eos,
            privacy=privacy,
            split=SplitOption.parse(split),
            codec=codec,
            deadline_s=deadline,
            criticality=parse_criticality(criticality),
            chunk_tokens=chunk,
        )

    def for_agent(self, agent: Agent) -> dict[str, Any]:
        """Keyword arguments of ``Agent.generate`` and ``Chat.say``.

        Raises:
            InputError: the model has no such cut.
        """
        given: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "sampling": self.sampling,
            "stop": self.stop,
            "ignore_eos": self.ignore_eos,
            "privacy": self.privacy,
            "deadline_s": self.deadline_s,
            "criticality": self.criticality,
            "chunk_tokens": self.chunk_tokens,
        }
        if self.split is not None:
            given["fixed"] = self.split.fixed(agent.checkpoint.config.shape.layers, self.privacy)
        if self.codec is not None:
            given["codecs"] = (self.codec,)
        return given


def parse_criticality(text: str) -> Criticality:
    """The class named as ``--criticality`` names it.

    Raises:
        InputError: there is none of this name.
    """
    name = text.lower()
    if name not in CRITICALITIES:
        raise InputError(f"{text!r} is not a criticality", f"use {', '.join(CRITICALITIES)}")
    return list(Criticality)[CRITICALITIES.index(name)]
