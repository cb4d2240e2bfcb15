"""What users ask, as frozen values read from TOML: kinds of conversations, their lengths, pauses and wishes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from splitglm_core.errors import InputError
from splitglm_core.plan import Privacy
from splitglm_partitioner.bounds import check_count, check_number
from splitglm_sims.load.scenario import Process
from splitglm_sims.presets.shelf import Shelf
from splitglm_sims.traces import MAX_LINES

MAX_CONTEXT_TOKENS: Final = 1 << 20
MAX_TURNS: Final = 1000
MAX_PAUSE_S: Final = 7 * 86400.0
MAX_USERS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormal:
    """A log-normal quantity, kept within bounds by moving what lies outside to the nearer one.

    Attributes:
        median: in the unit of whoever uses it.
        sigma: of the logarithm.
        low, high: bounds.
    """

    median: float
    sigma: float
    low: float
    high: float

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, 0.0, 5.0)
        if not 0.0 < self.low <= self.median <= self.high < math.inf:
            raise InputError("a log-normal needs 0 < low <= median <= high")

    def draw(self, rng: np.random.Generator) -> float:
        return float(min(self.high, max(self.low, self.median * math.exp(self.sigma * rng.standard_normal()))))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyShare:
    """So many conversations, by weight, want this privacy."""

    privacy: Privacy
    share: float

    def __post_init__(self) -> None:
        check_number("share", self.share, 0.0, 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of conversation of a workload.

    Attributes:
        genre: chat, edit, summarise or another name under which drafts have statistics.
        share: weight among the kinds.
        system_tokens: of the instructions before the first turn.
        prompt_tokens: what the user adds in a turn.
        answer_tokens: of an answer; or else ``answer_per_prompt`` is its length over that of what the user added.
        max_new_tokens: callers ask for one of these, each as often; a longer answer is cut there.
        mean_turns: of a conversation (geometric), at most ``max_turns``.
        think_s: from having read an answer to asking again.
        read_s_per_token: the user's reading, which begins with the answer.
        privacy: mix; one draw for a conversation.
        deadline_share: of turns that have a deadline; it is one of ``deadline_s``, each as often.
    """

    genre: str
    share: float = 1.0
    system_tokens: int = 0
    prompt_tokens: LogNormal
    answer_tokens: LogNormal | None = None
    answer_per_prompt: LogNormal | None = None
    max_new_tokens: tuple[int, ...]
    mean_turns: float = 1.0
    max_turns: int = MAX_TURNS
    think_s: LogNormal | None = None
    read_s_per_token: float = 0.0
    privacy: tuple[PrivacyShare, ...] = (PrivacyShare(privacy=Privacy.OPEN, share=1.0),)
    deadline_share: float = 0.0
    deadline_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.genre:
            raise InputError("a kind of conversation has a genre")
        check_number("share", self.share, 1e-9, 1e6)
        check_count("system_tokens", self.system_tokens, 0, MAX_CONTEXT_TOKENS)
        if (self.answer_tokens is None) == (self.answer_per_prompt is None):
            raise InputError("a kind has exactly one of answer_tokens and answer_per_prompt")
        for tokens in (self.prompt_tokens, self.answer_tokens):
            if tokens is not None and not 1.0 <= tokens.low <= tokens.high <= MAX_CONTEXT_TOKENS:
                raise InputError(f"lengths lie in [1, {MAX_CONTEXT_TOKENS}] tokens")
        if not self.max_new_tokens:
            raise InputError("max_new_tokens names at least one bound that callers ask for")
        for bound in self.max_new_tokens:
            check_count("max_new_tokens", bound, 1, MAX_CONTEXT_TOKENS)
        check_count("max_turns", self.max_turns, 1, MAX_TURNS)
        check_number("mean_turns", self.mean_turns, 1.0, self.max_turns)
        if self.mean_turns > 1.0 and self.think_s is None:
            raise InputError("a kind of several turns states think_s")
        if self.think_s is not None:
            check_number("think_s", self.think_s.high, 0.0, MAX_PAUSE_S)
        check_number("read_s_per_token", self.read_s_per_token, 0.0, 60.0)
        if not self.privacy or sum(item.share for item in self.privacy) <= 0.0:
            raise InputError("privacy needs at least one positive share")
        check_number("deadline_share", self.deadline_share, 0.0, 1.0)
        if (self.deadline_share > 0.0) != bool(self.deadline_s):
            raise InputError("deadline_share and deadline_s go together")
        for value in self.deadline_s:
            check_number("deadline_s", value, 1e-3, 86400.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A mix of conversations and how they arrive. Open and closed loops exclude each other.

    Attributes:
        about: one line for people.
        source: where lengths and pauses come from, and what is assumed.
        kinds: the mix.
        context_tokens: a conversation ends before its prompt and the bound on its answer exceed it.
        users: closed loop: so many users, each of whom begins a conversation ``pause_s`` after the end of the last.
        pause_s: between conversations of one user.
        conversations_per_s: open loop: mean rate of the arrivals.
        process: of the arrivals, as in load scenarios.
        burstiness: shape of gamma gaps; 1 is Poisson, less is burstier.
        trace_s: arrival times of the process ``trace``, ascending; repeated as a whole.
    """

    about: str
    source: str
    kinds: tuple[Kind, ...]
    context_tokens: int = 8192
    users: int = 0
    pause_s: LogNormal | None = None
    conversations_per_s: float = 0.0
    process: Process = Process.POISSON
    burstiness: float = 1.0
    trace_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.about or not self.source or not self.kinds:
            raise InputError("a workload has kinds, and says what it is about and where its figures come from")
        check_count("context_tokens", self.context_tokens, 2, MAX_CONTEXT_TOKENS)
        check_count("users", self.users, 0, MAX_USERS)
        check_number("conversations_per_s", self.conversations_per_s, 0.0, 1e6)
        check_number("burstiness", self.burstiness, 0.01, 100.0)
        opened = self.conversations_per_s > 0.0 or bool(self.trace_s)
        if (self.users > 0) == opened:
            raise InputError("a workload has either users (a closed loop) or conversations_per_s or trace_s (open)")
        if (self.users > 0) != (self.pause_s is not None):
            raise InputError("pause_s goes with users")
        if self.pause_s is not None:
            check_number("pause_s", self.pause_s.high, 0.0, MAX_PAUSE_S)
        if (self.process is Process.TRACE) != bool(self.trace_s) or len(self.trace_s) > MAX_LINES:
            raise InputError("trace_s goes with the process trace")
        for kind in self.kinds:
            if kind.system_tokens + 1 + max(kind.max_new_tokens) > self.context_tokens:
                raise InputError(f"no turn of genre {kind.genre!r} fits {self.context_tokens} context_tokens")

    @property
    def genres(self) -> tuple[str, ...]:
        return tuple(sorted({kind.genre for kind in self.kinds}))


WORKLOADS: Final = Shelf(kind=Workload, package="splitglm_sims.workloads", folder="shipped", word="workload")


def load_workload(name_or_path: str) -> Workload:
    """A workload by its shipped name or from a TOML file.

    Raises:
        InputError: there is none, or it is malformed; the message names file and key.
    """
    return WORKLOADS.load(name_or_path)


def workload_names() -> tuple[str, ...]:
    """Of the shipped workloads, sorted."""
    return WORKLOADS.names()
