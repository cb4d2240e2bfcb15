"""The options of one reply, checked before a model is opened, in the form that ``Agent.generate`` takes."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from splitglm_cli.options import CRITICALITIES
from splitglm_cli.split_option import SplitOption
from splitglm_core.criticality import Criticality
from splitglm_core.errors import InputError
from splitglm_core.plan import Codec, Privacy
from splitglm_core.sampling import SamplingParams

if TYPE_CHECKING:
    from splitglm_edge import Agent
    from splitglm_partitioner.request import Objective

CHUNKS: Final = (32, 64, 256)
"""Sizes that the policy may take instead of 128."""
OBJECTIVES: Final = ("latency", "ttft", "energy", "cloud_cost")


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
    energy_budget_j: float | None
    criticality: Criticality
    chunk: int | None
    objective: str | None

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
        energy_budget: float | None = None,
        criticality: str = "critical",
        chunk: int | None,
        objective: str | None = None,
    ) -> ReplyOptions:
        """Raises ``InputError`` for anything out of range."""
        if objective is not None:
            objective_weights(objective)
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
            energy_budget_j=energy_budget,
            criticality=parse_criticality(criticality),
            chunk=chunk,
            objective=objective,
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
            "energy_budget_j": self.energy_budget_j,
            "criticality": self.criticality,
        } | chunk_options(self.chunk)
        if self.objective is not None:
            given["objective"] = parse_objective(self.objective)
        if self.split is not None:
            given["fixed"] = self.split.fixed(agent.checkpoint.config.shape.layers, self.privacy)
        if self.codec is not None:
            given["codecs"] = (self.codec,)
        return given


def chunk_options(chunk: int | None) -> dict[str, Any]:
    """``chunk_tokens`` and ``chunks`` of a request: the size that was given, or the policy's choice."""
    return {"chunks": CHUNKS} if chunk is None else {"chunk_tokens": chunk, "chunks": ()}


def objective_weights(text: str) -> dict[str, float]:
    """The weights named in ``latency=1,ttft=0.5``; what is not named weighs nothing.

    Raises:
        InputError: malformed, unknown, named twice or not a number.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in OBJECTIVES or name in weights:
            raise InputError(
                f"--objective {part.strip()[:40]!r} is not NAME=WEIGHT, or names one twice",
                f"write for example latency=1,ttft=0.5; names are {', '.join(OBJECTIVES)}",
            )
        try:
            weights[name] = float(value)
        except ValueError:
            raise InputError(f"--objective: {value[:40]!r} is not a number", "write for example latency=1") from None
    return weights


def parse_objective(text: str) -> Objective:
    """The objective of ``objective_weights``. Raises what that raises, and ``InputError`` for weights out of range."""
    from splitglm_partitioner.request import Objective

    return Objective(**({"latency": 0.0} | objective_weights(text)))


def parse_criticality(text: str) -> Criticality:
    """The class named as ``--criticality`` names it.

    Raises:
        InputError: there is none of this name.
    """
    name = text.lower()
    if name not in CRITICALITIES:
        raise InputError(f"{text!r} is not a criticality", f"use {', '.join(CRITICALITIES)}")
    return list(Criticality)[CRITICALITIES.index(name)]
