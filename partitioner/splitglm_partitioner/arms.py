"""Which plans a situation allows, and for each arm that it does not, why.

Every hard constraint but the deadline bounds ``s`` from below or above for a given arm and ``t``, so the allowed plans
are a handful of ranges of ``s`` (blocks); nothing is enumerated one by one until its cost is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, Codec, HeadSide, Privacy, SplitPlan
from splitglm_partitioner.lanes import undominated
from splitglm_partitioner.request import Situation

# A shorter back than the rest of the model pays only where the device's layers are the cheaper ones or the cloud's cost
# weighs; cost is near-linear in t, so the full back and a few short tails show which way it slopes.
TAIL_LAYERS = (0, 1, 4)


class Constraint(Enum):
    """What can forbid a plan. The value is the word used in logs."""

    FIXED = "fixed"
    PRIVACY = "privacy"
    DEVICE_HEAD = "head-on-device"
    CLOUD = "cloud"
    SERVED = "cloud-layers"
    CLOUD_EMBEDDING = "cloud-embedding"
    CLOUD_HEAD = "cloud-head"
    CODEC = "codec"
    PRICE = "price"
    MEMORY = "device-memory"
    MAX_LAYERS = "device-layers"
    DEADLINE = "deadline"

    @property
    def remedy(self) -> str:
        """What the caller may relax."""
        return _REMEDIES[self]


_REMEDIES = {
    Constraint.FIXED: "fix fewer of arm, s, t and codec",
    Constraint.PRIVACY: "allow a more open privacy class or a smaller s_min",
    Constraint.DEVICE_HEAD: "do not require the head on the device",
    Constraint.CLOUD: "configure or reach a cloud",
    Constraint.SERVED: "use a cloud that serves more layers",
    Constraint.CLOUD_EMBEDDING: "use a cloud with an embedding",
    Constraint.CLOUD_HEAD: "use a cloud with a head",
    Constraint.CODEC: "accept a codec that the cloud offers",
    Constraint.PRICE: "set the cloud_cost weight to 0 or use a cloud that states a price",
    Constraint.MEMORY: "free device memory, use a lower precision or shorten prompt and answer",
    Constraint.MAX_LAYERS: "raise the device's max_layers",
    Constraint.DEADLINE: "allow a longer deadline or a shorter answer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """Why no plan of ``arm`` is allowed: the constraint that removed the last of them."""

    arm: Arm
    constraint: Constraint
    detail: str


class Block(NamedTuple):
    """Allowed plans of one arm and one ``t``: ``s`` in ``[s_start, s_stop)``, never empty."""

    arm: Arm
    t: int
    s_start: int
    s_stop: int


@dataclass(frozen=True, slots=True)
class Candidates:
    """All allowed plans.

    Attributes:
        blocks: grouped by arm; within U-shape, ``t == layers`` first.
        codecs: choices for hidden states; every SPLIT or USHAPE plan exists once per codec.
        exclusions: arms without any plan.
        narrowed: arms that lost some of their plans, with the constraint that took them.
    """

    layers: int
    chunk_tokens: int
    blocks: tuple[Block, ...]
    codecs: tuple[Codec, ...]
    exclusions: tuple[Exclusion, ...]
    narrowed: tuple[tuple[Arm, Constraint], ...]

    def plans(self) -> Iterator[SplitPlan]:
        """Every allowed plan."""
        for block in self.blocks:
            for codec in self.codecs if block.arm in (Arm.SPLIT, Arm.USHAPE) else (Codec.BF16,):
                for s in range(block.s_start, block.s_stop):
                    yield make_plan(self.layers, block.arm, s, block.t, codec, self.chunk_tokens)


def make_plan(layers: int, arm: Arm, s: int, t: int, codec: Codec, chunk_tokens: int) -> SplitPlan:
    """The plan of ``arm`` at a cut; ``codec`` is ignored where no hidden state travels."""
    if arm is Arm.DEVICE:
        return SplitPlan.device_only(layers, chunk_tokens=chunk_tokens)
    if arm is Arm.CLOUD:
        return SplitPlan.cloud_only(layers, chunk_tokens=chunk_tokens)
    head = HeadSide.CLOUD if arm is Arm.SPLIT else HeadSide.DEVICE
    return SplitPlan(layers=layers, s=s, t=t, head=head, codec=codec, chunk_tokens=chunk_tokens)


def enumerate_arms(situation: Situation) -> Candidates:
    """Apply every constraint except the deadline. InputError for a fixed cut that the model does not have."""
    return _Enumeration(situation).run()


class _Refused(Exception):
    """Internal: the arm at hand has no plan left."""

    def __init__(self, constraint: Constraint, detail: str) -> None:
        super().__init__(detail)
        self.constraint = constraint
        self.detail = detail


class _Enumeration:
    def __init__(self, situation: Situation) -> None:
        self.x = situation
        self.request, self.device, self.cloud = situation.request, situation.device, situation.cloud
        self.n = situation.model.layers
        self.narrowed: list[tuple[Arm, Constraint]] = []
        offered = self.cloud.codecs if self.cloud is not None else ()
        fixed = self.request.fixed.codec
        wanted = self.request.codecs if fixed is None else (fixed,)
        self.codecs = undominated(tuple(codec for codec in wanted if codec in offered), situation)
        tokens = self.request.positions
        self.head_bytes = (
            self.device.memory_bytes(0, tokens, embedding=True, head=False),
            self.device.memory_bytes(0, tokens, embedding=True, head=True),
        )
        self.layer_bytes = self.device.memory_bytes(1, tokens, embedding=False, head=False)
        for name, value in (("s", self.request.fixed.s), ("t", self.request.fixed.t)):
            if value is not None and value > self.n:
                raise InputError(f"fixed {name} = {value} exceeds the model's {self.n} layers")

    def run(self) -> Candidates:
        blocks: list[Block] = []
        exclusions: list[Exclusion] = []
        rules = ((Arm.DEVICE, self._device), (Arm.CLOUD, self._cloud), (Arm.SPLIT, self._split))
        for arm, rule in (*rules, (Arm.USHAPE, self._ushape)):
            try:
                fixed = self.request.fixed.arm
                if fixed is not None and fixed is not arm:
                    raise _Refused(Constraint.FIXED, f"the caller fixed the arm {fixed.value}")
                blocks.extend(rule())
            except _Refused as refused:
                exclusions.append(Exclusion(arm=arm, constraint=refused.constraint, detail=refused.detail))
        narrowed = tuple(dict.fromkeys(pair for pair in self.narrowed if any(b.arm is pair[0] for b in blocks)))
        chunk = self.request.chunk_tokens
        return Candidates(self.n, chunk, tuple(blocks), self.codecs, tuple(exclusions), narrowed)

    def _device(self) -> list[Block]:
        return [self._range(Arm.DEVICE, self.n, self.n, self.n + 1)]

    def _cloud(self) -> list[Block]:
        privacy = self.request.privacy
        if privacy is not Privacy.OPEN:
            raise _Refused(Constraint.PRIVACY, f"{privacy.value} keeps prompt ids on the device")
        self._needs_cloud(head=True)
        if self.cloud is not None and not self.cloud.has_embedding:
            raise _Refused(Constraint.CLOUD_EMBEDDING, "the cloud holds no embedding")
        return [self._range(Arm.CLOUD, self.n, 0, 1)]

    def _split(self) -> list[Block]:
        privacy = self.request.privacy
        if privacy in (Privacy.NO_TEXT, Privacy.LOCAL):
            kept = "answer ids" if privacy is Privacy.NO_TEXT else "everything"
            raise _Refused(Constraint.PRIVACY, f"{privacy.value} keeps {kept} on the device")
        self._needs_cloud(head=True)
        self._needs_codec()
        return [self._range(Arm.SPLIT, self.n, 1, self.n)]

    def _ushape(self) -> list[Block]:
        if self.request.privacy is Privacy.LOCAL:
            raise _Refused(Constraint.PRIVACY, "local keeps everything on the device")
        self._needs_cloud(head=False)
        self._needs_codec()
        blocks: list[Block] = []
        refused: list[_Refused] = []
        for t in self._tails():
            try:
                blocks.append(self._range(Arm.USHAPE, t, 1, t))
            except _Refused as reason:
                refused.append(reason)
        if not blocks:
            raise refused[0] if refused else _Refused(Constraint.FIXED, "a U-shape needs 1 <= s < t")
        return blocks

    def _tails(self) -> list[int]:
        """Values of ``t`` to try, largest first."""
        if self.request.fixed.t is not None:
            return [self.request.fixed.t] if self.request.fixed.t >= 2 else []
        tails = {self.n - k for k in TAIL_LAYERS}
        if self.cloud is not None:
            tails.add(self.cloud.served.stop)
        if self.request.warm is not None and self.request.warm.plan.arm is Arm.USHAPE:
            tails.add(self.request.warm.plan.t)
        return sorted((t for t in tails if t >= 2), reverse=True)

    def _needs_cloud(self, *, head: bool) -> None:
        if self.cloud is None or self.x.link is None:
            raise _Refused(Constraint.CLOUD, "no cloud is configured or reachable")
        if head and self.request.head_on_device:
            raise _Refused(Constraint.DEVICE_HEAD, "the request needs the head on the device")
        if head and not self.cloud.has_head:
            raise _Refused(Constraint.CLOUD_HEAD, "the cloud holds no head")
        if self.request.objective.cloud_cost > 0.0 and self.cloud.price_per_layer_token is None:
            raise _Refused(Constraint.PRICE, "cloud cost weighs in the objective but the cloud states no price")

    def _needs_codec(self) -> None:
        if not self.codecs:
            raise _Refused(Constraint.CODEC, "the request and the cloud have no codec in common")

    def _range(self, arm: Arm, t: int, start: int, stop: int) -> Block:
        """Narrow ``[start, stop)`` by one constraint after another; the one that empties it is the reason."""
        for constraint, low, high in self._bounds(arm, t):
            if low > start or high < stop:
                self.narrowed.append((arm, constraint))
                start, stop = max(start, low), min(stop, high)
                if start >= stop:
                    raise _Refused(constraint, self._detail(constraint, arm, t))
        return Block(arm, t, start, stop)

    def _bounds(self, arm: Arm, t: int) -> list[tuple[Constraint, int, int]]:
        """Half-open bounds of ``s`` per constraint."""
        request, n, out = self.request, self.n, []
        if request.fixed.s is not None:
            out.append((Constraint.FIXED, request.fixed.s, request.fixed.s + 1))
        if request.fixed.t is not None and request.fixed.t != t:
            out.append((Constraint.FIXED, n, 0))
        if arm in (Arm.SPLIT, Arm.USHAPE) and request.privacy is not Privacy.OPEN:
            out.append((Constraint.PRIVACY, request.s_min, n))
        if arm is not Arm.DEVICE and self.cloud is not None:
            out.append((Constraint.SERVED, self.cloud.served.start, n if t <= self.cloud.served.stop else 0))
        if arm is not Arm.CLOUD:
            tail = n - t
            out.append((Constraint.MAX_LAYERS, 0, self.device.max_layers - tail + 1))
            room = self.device.memory_bytes_free - self.head_bytes[arm is not Arm.SPLIT]
            out.append((Constraint.MEMORY, 0, room // self.layer_bytes - tail + 1))
        return out

    def _detail(self, constraint: Constraint, arm: Arm, t: int) -> str:
        """Why ``constraint`` leaves no cut of ``arm`` at ``t``."""
        request = self.request
        if constraint is Constraint.PRIVACY:
            return f"{request.privacy.value} with s_min = {request.s_min} leaves no cut below {t}"
        if constraint is Constraint.SERVED and self.cloud is not None:
            return f"the cloud serves layers {self.cloud.served}, which leaves no back up to {t}"
        if constraint is Constraint.MAX_LAYERS:
            return f"the device may hold {self.device.max_layers} of the model's layers"
        if constraint is Constraint.MEMORY:
            held = self.n if arm is Arm.DEVICE else 1 + self.n - t
            least = held * self.layer_bytes + self.head_bytes[arm is not Arm.SPLIT]
            free = self.device.memory_bytes_free
            return f"at least {least / 1e6:.0f} MB are needed for {held} layers and {free / 1e6:.0f} MB are free"
        return f"the caller fixed s = {request.fixed.s}, t = {request.fixed.t}"
