"""What is asked: one request's size, privacy, deadline, objective and whatever the caller has fixed."""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_core.errors import InputError, PromptTooLong
from splitglm_core.plan import Arm, Codec, Privacy, SplitPlan
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.bounds import MAX_BYTES, MAX_LAYERS, MAX_SECONDS, MAX_TOKENS, check_count, check_number
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.factors import ArmFactors
from splitglm_partitioner.observations import Outcome
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile, LinkEstimate

MAX_CHUNKS = 4096
MAX_CHUNK_SIZES = 8
MAX_DRAFTERS = 8
MAX_JOULES = 1e9
PREFILL_IN_FLIGHT = 16
"""Prefill steps sent and not yet answered: enough to hide a round trip, few enough to bound both sides' memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Weights of what is minimised: ``latency * total_s + ttft * ttft_s + energy * joules + cloud_cost * price``.

    ``cloud_cost`` multiplies the cloud's stated price of the request; without a stated price the cloud is left out.
    ``energy`` multiplies the device's joules; weighing them needs a device profile that states its power.
    """

    latency: float = 1.0
    ttft: float = 0.0
    energy: float = 0.0
    cloud_cost: float = 0.0

    def __post_init__(self) -> None:
        for name in ("latency", "ttft", "energy", "cloud_cost"):
            check_number(f"objective weight {name}", getattr(self, name), 0.0, 1e9)
        if self.latency == self.ttft == self.energy == self.cloud_cost == 0.0:
            raise InputError("all objective weights are 0: nothing to choose by", "set latency=1")

    def value_of(self, outcome: Outcome) -> float:
        """What ``outcome`` came to under these weights; lower is better, comparable with a ``Choice.value``.

        Raises:
            InputError: a weight is not 0 and what it weighs is not known of the outcome.
        """
        value = self.latency * outcome.total_s + self.ttft * outcome.ttft_s
        for name, weight, amount in (
            ("energy", self.energy, outcome.energy_j),
            ("price", self.cloud_cost, outcome.price),
        ):
            if weight > 0.0:
                if amount is None:
                    raise InputError(f"the {name} of this outcome is not known, and it weighs in the objective")
                value += weight * amount
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What the caller decided beforehand; None leaves it to the policy."""

    arm: Arm | None = None
    s: int | None = None
    t: int | None = None
    codec: Codec | None = None

    def __post_init__(self) -> None:
        for name, value in (("s", self.s), ("t", self.t)):
            if value is not None:
                check_count(f"fixed {name}", value, 0, MAX_LAYERS)


def same_caches(a: SplitPlan, b: SplitPlan) -> bool:
    """True when what is cached under ``a`` serves ``b``: same cut, same side of the head, same chunks, same codec.

    A reply must equal what its one plan computes: how a prompt is cut into chunks decides how its sums are rounded, and
    the codec counts where hidden states travel.
    """
    same_cut = (a.layers, a.s, a.t, a.head, a.chunk_tokens) == (b.layers, b.s, b.t, b.head, b.chunk_tokens)
    return same_cut and (a.codec is b.codec or a.arm in (Arm.DEVICE, Arm.CLOUD))


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """An open session: its plan, and how many leading tokens of this prompt its KV caches hold on both sides."""

    plan: SplitPlan
    cached_tokens: int

    def __post_init__(self) -> None:
        check_count("cached_tokens", self.cached_tokens, 0, MAX_TOKENS)

    def serves(self, plan: SplitPlan) -> bool:
        """True when a request under ``plan`` can go on in this session."""
        return same_caches(self.plan, plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One generation to be planned.

    Attributes:
        prompt_tokens: whole prompt, cached part included.
        expected_new_tokens: tokens that the answer is expected to have, the first included: what times are summed over.
        privacy: what may be sent.
        s_min: least number of layers on the device before anything is sent (``no-prompt`` and ``no-text``).
        deadline_s: bound on the whole request, kept under the pessimistic link; None for none.
        objective: weights.
        codecs: acceptable to the caller for hidden states, best loved first (decides exact ties).
        chunk_tokens: prompt positions per prefill step.
        head_on_device: the caller needs the logits (constrained decoding, log-probabilities).
        fixed: decided beforehand.
        warm: an open session that may be reused.
        max_new_tokens: most tokens that the answer may have: what memory and positions must hold; None for
            ``expected_new_tokens``.
        chunks: further chunk sizes that the policy may take instead of ``chunk_tokens``, see ``chunk_sizes``. An open
            session keeps its own.
        energy_budget_j: bound on the device's joules for the whole request, kept under the pessimistic link.
    """

    prompt_tokens: int
    expected_new_tokens: int
    privacy: Privacy = Privacy.NO_TEXT
    s_min: int = 1
    deadline_s: float | None = None
    objective: Objective = Objective()
    codecs: tuple[Codec, ...] = (Codec.BF16, Codec.INT8)
    chunk_tokens: int = 128
    head_on_device: bool = False
    fixed: Fixed = Fixed()
    warm: Warm | None = None
    max_new_tokens: int | None = None
    chunks: tuple[int, ...] = ()
    energy_budget_j: float | None = None

    def __post_init__(self) -> None:
        check_count("prompt_tokens", self.prompt_tokens, 1, MAX_TOKENS)
        check_count("expected_new_tokens", self.expected_new_tokens, 1, MAX_TOKENS)
        if self.max_new_tokens is not None:
            check_count("max_new_tokens", self.max_new_tokens, self.expected_new_tokens, MAX_TOKENS)
        check_count("s_min", self.s_min, 1, MAX_LAYERS)
        # A chunk of one is a decode step; the bound below keeps the number of chunks of any prompt small.
        check_count("further chunk sizes", len(self.chunks), 0, MAX_CHUNK_SIZES - 1)
        offered = (self.chunk_tokens, *self.chunks)
        for chunk in offered:
            check_count("chunk_tokens", chunk, 1, MAX_TOKENS)
            if self.prompt_tokens > MAX_CHUNKS * chunk:
                raise InputError(f"{self.prompt_tokens} tokens in chunks of {chunk} are more than {MAX_CHUNKS} chunks")
        if len(set(offered)) != len(offered):
            raise InputError("chunks lists a size twice, or chunk_tokens again")
        if self.energy_budget_j is not None:
            check_number("energy_budget_j", self.energy_budget_j, 0.0, MAX_JOULES)
        if self.deadline_s is not None:
            check_number("deadline_s", self.deadline_s, 0.0, MAX_SECONDS)
        if len(set(self.codecs)) != len(self.codecs):
            raise InputError("codecs lists a codec twice")
        if self.warm is not None and self.warm.cached_tokens >= self.prompt_tokens:
            raise InputError("a warm session must leave at least one prompt token to run")

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """Those of ``chunk_tokens``, then ``chunks``, that the search looks at.

        The agent keeps at most ``PREFILL_IN_FLIGHT`` chunks open, and the model of the prefill knows no such hold. A
        size that needs more of them is left out where another needs no more, unless the open session is of that size.
        """
        offered = (self.chunk_tokens, *self.chunks)
        least = -(-self.prompt_tokens // PREFILL_IN_FLIGHT)
        if min(offered) >= least or max(offered) < least:
            return offered
        own = self.warm.plan.chunk_tokens if self.warm is not None else None
        return tuple([chunk for chunk in offered if chunk >= least or chunk == own])

    @property
    def mean_context_tokens(self) -> float:
        """Context of the middle of the expected answer: what its steps are priced at."""
        return self.prompt_tokens + self.expected_new_tokens / 2

    @property
    def positions(self) -> int:
        """KV positions at the end of the longest answer."""
        return self.prompt_tokens + (self.max_new_tokens or self.expected_new_tokens)

    def cached_tokens(self, plan: SplitPlan) -> int:
        """Prompt tokens that need not be run or sent under ``plan``."""
        return self.warm.cached_tokens if self.warm is not None and self.warm.serves(plan) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything a decision depends on, and nothing else. ``link`` and ``cloud`` are None when there is no cloud.

    ``drafts`` holds the drafters that this device has, with their statistics for the request's genre. ``factors`` holds
    what the model's times of an arm are multiplied by, each arm at most once; 1 for an arm that is absent.
    """

    request: Request
    model: ModelShape
    device: DeviceProfile
    link: LinkEstimate | None
    cloud: CloudProfile | None
    drafts: tuple[DraftStatistics, ...] = ()
    factors: tuple[ArmFactors, ...] = ()

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "max_positions"):
            check_count(f"model {name}", getattr(self.model, name), 1, MAX_BYTES)
        n = self.model.layers
        if self.device.layers != n:
            raise InputError(f"the device profile is of a model with {self.device.layers} layers, not {n}")
        if self.cloud is not None and self.cloud.layers != n:
            raise InputError(f"the cloud profile is of a model with {self.cloud.layers} layers, not {n}")
        if self.request.warm is not None and self.request.warm.plan.layers != n:
            raise InputError(f"the warm session is of a model with {self.request.warm.plan.layers} layers, not {n}")
        if (self.request.objective.energy > 0.0 or self.request.energy_budget_j is not None) and (
            self.device.power is None
        ):
            raise InputError(
                "the request weighs or bounds energy, and the device profile does not state its power",
                "set energy=0 and no energy_budget_j, or state compute_w and radio_w in the profile",
            )
        check_count("drafters", len(self.drafts), 0, MAX_DRAFTERS)
        if len({drafter.name for drafter in self.drafts}) != len(self.drafts):
            raise InputError("drafts lists a drafter twice")
        if self.factors and len({factors.arm for factors in self.factors}) != len(self.factors):
            raise InputError("factors lists an arm twice")
        if self.request.positions > self.model.max_positions:
            raise PromptTooLong(
                f"{self.request.prompt_tokens} prompt and up to "
                f"{self.request.positions - self.request.prompt_tokens} new tokens exceed the "
                f"model's {self.model.max_positions} positions",
                "shorten the prompt or the answer",
            )
