"""Which plans a situation allows, and for each arm that it does not, why.

Every hard constraint but the deadline and the energy budget bounds ``s`` from below or above for a given arm and ``t``,
so the allowed plans are a handful of ranges of ``s`` (blocks); nothing is enumerated one by one until its cost is asked
for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, Codec, HeadSide, Privacy, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_partitioner.constraints import Constraint, Exclusion
from splitglm_partitioner.lanes import undominated
from splitglm_partitioner.request import Situation

# A shorter back than the rest of the model pays only where the device's layers are the cheaper ones or the cloud's cost
# weighs; cost is near-linear in t, so the full back and a few short tails show which way it slopes.
TAIL_LAYERS = (0, 1, 4)


class Block(NamedTuple):
    """Allowed plans of one arm and one ``t``: ``s`` in ``[s_start, s_stop)``, never empty."""

    arm: Arm
    t: int
    s_start: int
    s_stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """All allowed plans. Equal limits give the very same object, so that what is derived from it can be kept.

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
        """Every allowed plan in chunks of ``chunk_tokens`` that decodes token by token."""
        for block in self.blocks:
            for codec in self.codecs if block.arm in (Arm.SPLIT, Arm.USHAPE) else (Codec.BF16,):
                for s in range(block.s_start, block.s_stop):
                    yield make_plan(self.layers, block.arm, s, block.t, codec, self.chunk_tokens)


def make_plan(
    layers: int,
    arm: Arm,
    s: int,
    t: int,
    codec: Codec,
    chunk_tokens: int,
    drafter: str = "none",
    draft_tokens: int = 0,
) -> SplitPlan:
    """The plan of ``arm`` at a cut; ``codec`` is ignored where no hidden state travels."""
    if arm is Arm.DEVICE:
        return SplitPlan.device_only(layers, chunk_tokens=chunk_tokens)
    here = arm is Arm.USHAPE
    return SplitPlan(
        layers=layers,
        s=0 if arm is Arm.CLOUD else s,
        t=t if here else layers,
        head=HeadSide.DEVICE if here else HeadSide.CLOUD,
        codec=Codec.BF16 if arm is Arm.CLOUD else codec,
        chunk_tokens=chunk_tokens,
        drafter=drafter,
        draft_tokens=draft_tokens,
    )


def choices_of(plan: SplitPlan, situation: Situation) -> Iterator[SplitPlan]:
    """``plan`` in every chunk size that is looked at and with every draft that the situation offers it."""
    for chunk in situation.request.chunk_sizes:
        in_chunks = replace(plan, chunk_tokens=chunk)
        yield in_chunks
        for drafter in situation.drafts:
            if plan.arm in drafter.arms and plan.s >= drafter.front_layers:
                for length in range(1, len(drafter.survival) + 1):
                    yield replace(in_chunks, drafter=drafter.name, draft_tokens=length)


class _Cloud(NamedTuple):
    """What of a cloud bounds the plans."""

    start: int
    stop: int
    has_embedding: bool
    has_head: bool
    affordable: bool  # a price is stated, or none weighs


class _Limits(NamedTuple):
    """What the allowed plans depend on, in layers.

    Attributes:
        fixed: arm, s and t.
        codecs: in common and not beaten everywhere.
        room: layers that the device's memory holds beside embedding and head, and beside the embedding alone.
        warm_t: the end of the open session's back, when it is a U-shape.
        cloud: None when there is none or it cannot be reached.
    """

    layers: int
    chunk_tokens: int
    fixed: tuple[Arm | None, int | None, int | None]
    privacy: Privacy
    s_min: int
    head_on_device: bool
    codecs: tuple[Codec, ...]
    room: tuple[int, int]
    max_layers: int
    warm_t: int | None
    cloud: _Cloud | None


def enumerate_arms(situation: Situation) -> Candidates:
    """Apply every constraint but deadline and energy budget. InputError for a fixed cut that the model lacks."""
    request, device, n = situation.request, situation.device, situation.model.layers
    fixed = request.fixed
    for name, value in (("s", fixed.s), ("t", fixed.t)):
        if value is not None and value > n:
            raise InputError(f"fixed {name} = {value} exceeds the model's {n} layers")
    cloud: _Cloud | None = None
    codecs: tuple[Codec, ...] = ()
    if situation.cloud is not None and situation.link is not None:
        known = situation.cloud
        affordable = request.objective.cloud_cost == 0.0 or known.price_per_layer_token is not None
        cloud = _Cloud(known.served.start, known.served.stop, known.has_embedding, known.has_head, affordable)
        wanted = request.codecs if fixed.codec is None else (fixed.codec,)
        codecs = undominated(tuple([codec for codec in wanted if codec in known.codecs]), situation)
    layer, with_head, without = _memory(situation)
    free = device.memory_bytes_free
    limits = _Limits(
        n,
        request.chunk_tokens,
        (fixed.arm, fixed.s, fixed.t),
        request.privacy,
        request.s_min,
        request.head_on_device,
        codecs,
        ((free - with_head) // layer, (free - without) // layer),
        device.max_layers,
        request.warm.plan.t if request.warm is not None and request.warm.plan.arm is Arm.USHAPE else None,
        cloud,
    )
    found = _enumerate(limits)
    if not any(exclusion.constraint is Constraint.MEMORY for exclusion in found.exclusions):
        return found
    return replace(found, exclusions=tuple(_in_bytes(exclusion, situation) for exclusion in found.exclusions))


def _memory(situation: Situation) -> tuple[int, int, int]:
    """Bytes of one layer, of embedding and head, and of the embedding alone."""
    device = situation.device
    profile, layer = device.active, device.memory_bytes(1, situation.request.positions, embedding=False, head=False)
    embedding = profile.embedding_weight_bytes
    return layer, embedding + profile.head_weight_bytes, embedding


def _in_bytes(exclusion: Exclusion, situation: Situation) -> Exclusion:
    """A memory exclusion states a number of layers; say what they need."""
    if exclusion.constraint is not Constraint.MEMORY:
        return exclusion
    held, (layer, with_head, without) = int(exclusion.detail), _memory(situation)
    least = held * layer + (without if exclusion.arm is Arm.SPLIT else with_head)
    free = situation.device.memory_bytes_free
    detail = f"at least {least / 1e6:.0f} MB are needed for {held} layers and {free / 1e6:.0f} MB are free"
    return Exclusion(arm=exclusion.arm, constraint=exclusion.constraint, detail=detail)


@lru_cache(maxsize=256)
def _enumerate(limits: _Limits) -> Candidates:
    return _Enumeration(limits).run()


class _Refused(Exception):
    """Internal: the arm at hand has no plan left."""

    def __init__(self, constraint: Constraint, detail: str) -> None:
        super().__init__(detail)
        self.constraint = constraint
        self.detail = detail


class _Enumeration:
    def __init__(self, limits: _Limits) -> None:
        self.x = limits
        self.n = limits.layers
        self.fixed_arm, self.fixed_s, self.fixed_t = limits.fixed
        self.narrowed: list[tuple[Arm, Constraint]] = []

    def run(self) -> Candidates:
        blocks: list[Block] = []
        exclusions: list[Exclusion] = []
        rules = ((Arm.DEVICE, self._device), (Arm.CLOUD, self._cloud), (Arm.SPLIT, self._split))
        for arm, rule in (*rules, (Arm.USHAPE, self._ushape)):
            try:
                if self.fixed_arm is not None and self.fixed_arm is not arm:
                    raise _Refused(Constraint.FIXED, f"the caller fixed the arm {self.fixed_arm.value}")
                blocks.extend(rule())
            except _Refused as refused:
                exclusions.append(Exclusion(arm=arm, constraint=refused.constraint, detail=refused.detail))
        narrowed = tuple(dict.fromkeys(pair for pair in self.narrowed if any(b.arm is pair[0] for b in blocks)))
        return Candidates(self.n, self.x.chunk_tokens, tuple(blocks), self.x.codecs, tuple(exclusions), narrowed)

    def _device(self) -> list[Block]:
        return [self._range(Arm.DEVICE, self.n, self.n, self.n + 1)]

    def _cloud(self) -> list[Block]:
        privacy = self.x.privacy
        if privacy is not Privacy.OPEN:
            raise _Refused(Constraint.PRIVACY, f"{privacy.value} keeps prompt ids on the device")
        if not self._needs_cloud(head=True).has_embedding:
            raise _Refused(Constraint.CLOUD_EMBEDDING, "the cloud holds no embedding")
        return [self._range(Arm.CLOUD, self.n, 0, 1)]

    def _split(self) -> list[Block]:
        privacy = self.x.privacy
        if privacy in (Privacy.NO_TEXT, Privacy.LOCAL):
            kept = "answer ids" if privacy is Privacy.NO_TEXT else "everything"
            raise _Refused(Constraint.PRIVACY, f"{privacy.value} keeps {kept} on the device")
        self._needs_cloud(head=True)
        self._needs_codec()
        return [self._range(Arm.SPLIT, self.n, 1, self.n)]

    def _ushape(self) -> list[Block]:
        if self.x.privacy is Privacy.LOCAL:
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
        if self.fixed_t is not None:
            return [self.fixed_t] if self.fixed_t >= 2 else []
        tails = {self.n - k for k in TAIL_LAYERS}
        if self.x.cloud is not None:
            tails.add(self.x.cloud.stop)
        if self.x.warm_t is not None:
            tails.add(self.x.warm_t)
        return sorted((t for t in tails if t >= 2), reverse=True)

    def _needs_cloud(self, *, head: bool) -> _Cloud:
        cloud = self.x.cloud
        if cloud is None:
            raise _Refused(Constraint.CLOUD, "no cloud is configured or reachable")
        if head and self.x.head_on_device:
            raise _Refused(Constraint.DEVICE_HEAD, "the request needs the head on the device")
        if head and not cloud.has_head:
            raise _Refused(Constraint.CLOUD_HEAD, "the cloud holds no head")
        if not cloud.affordable:
            raise _Refused(Constraint.PRICE, "cloud cost weighs in the objective but the cloud states no price")
        return cloud

    def _needs_codec(self) -> None:
        if not self.x.codecs:
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
        x, n, out = self.x, self.n, []
        if self.fixed_s is not None:
            out.append((Constraint.FIXED, self.fixed_s, self.fixed_s + 1))
        if self.fixed_t is not None and self.fixed_t != t:
            out.append((Constraint.FIXED, n, 0))
        if arm in (Arm.SPLIT, Arm.USHAPE) and x.privacy is not Privacy.OPEN:
            out.append((Constraint.PRIVACY, x.s_min, n))
        if arm is not Arm.DEVICE and x.cloud is not None:
            out.append((Constraint.SERVED, x.cloud.start, n if t <= x.cloud.stop else 0))
        if arm is not Arm.CLOUD:
            tail = n - t
            out.append((Constraint.MAX_LAYERS, 0, x.max_layers - tail + 1))
            out.append((Constraint.MEMORY, 0, x.room[arm is Arm.SPLIT] - tail + 1))
        return out

    def _detail(self, constraint: Constraint, arm: Arm, t: int) -> str:
        """Why ``constraint`` leaves no cut of ``arm`` at ``t``; for memory, the layers that must be held."""
        x = self.x
        if constraint is Constraint.PRIVACY:
            return f"{x.privacy.value} with s_min = {x.s_min} leaves no cut below {t}"
        if constraint is Constraint.SERVED and x.cloud is not None:
            served = LayerRange(x.cloud.start, x.cloud.stop)
            return f"the cloud serves layers {served}, which leaves no back up to {t}"
        if constraint is Constraint.MAX_LAYERS:
            return f"the device may hold {x.max_layers} of the model's layers"
        if constraint is Constraint.MEMORY:
            return str(self.n if arm is Arm.DEVICE else 1 + self.n - t)
        return f"the caller fixed s = {self.fixed_s}, t = {self.fixed_t}"
