"""Fixed arms: one arm, cut, codec and drafter for every request, and the list of those that a situation has.

The yardsticks of every published comparison: device-only, cloud-only, a fixed cut. Cloud-only with drafts made beside
the target is the strongest of them: by the closed form of *Speculation at a Distance* (arXiv 2606.25091), co-located
speculation always has lower latency and less communication than synchronous speculation over a link. Taken from there:
the baseline itself. Its tokens per cloud step are the drafter's statistics in the scene (published for three
multi-token predictions: 2.2 to 2.5), and the simulated cloud pays for drafting and verifying.

Where privacy, memory or the cloud forbid the arm, the allowed plan nearest to it runs (``allowed.nearest``): cloud-only
becomes the lowest allowed split, else the lowest U-shape, else device-only. The best of ``fixed_arms`` in hindsight is
the best fixed arm that regret is counted against: a study runs them all and takes the one of the lowest total.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, Codec, SplitPlan
from splitglm_partitioner.arms import enumerate_arms
from splitglm_partitioner.drafts import MAX_DRAFT_TOKENS
from splitglm_partitioner.request import Situation
from splitglm_sims.strategies.allowed import allowed, drafter_named, nearest, with_drafts
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.passive import Passive
from splitglm_sims.strategies.strategy import Task

_WHOLE = re.compile("-?[0-9]{1,9}")
ENDS = {"low": 0.0, "middle": 0.5, "high": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedArm:
    """What is fixed.

    Attributes:
        arm: kind of plan.
        cut: layers on the device before the back; negative: that many fewer than all. ``"low"``, ``"middle"`` and
            ``"high"`` are shares of the model's layers that the allowed range then clips.
        tail_layers: layers after the back on the device (U-shape).
        codec: of hidden states; None for the request's first.
        drafter: name, or ``"none"``.
        draft_tokens: per round.
    """

    arm: Arm
    cut: int | str = "low"
    tail_layers: int = 0
    codec: Codec | None = None
    drafter: str = "none"
    draft_tokens: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.cut, str) and self.cut not in ENDS:
            raise InputError(f"cut {self.cut!r} is neither a number nor one of {', '.join(ENDS)}")
        if self.tail_layers < 0:
            raise InputError("tail_layers is 0 or more")
        if not 0 <= self.draft_tokens <= MAX_DRAFT_TOKENS or (self.drafter == "none") != (self.draft_tokens == 0):
            raise InputError(
                f"a drafter proposes 1 to {MAX_DRAFT_TOKENS} tokens, and nothing without one",
                "set drafter and draft_tokens together",
            )

    def plan(self, situation: Situation) -> SplitPlan:
        """The fixed plan where it is allowed, else the nearest allowed one."""
        layers = situation.model.layers
        if isinstance(self.cut, str):
            s = round(ENDS[self.cut] * layers)
        else:
            s = self.cut if self.cut >= 0 else layers + self.cut
        if self.arm in (Arm.DEVICE, Arm.CLOUD):
            s = layers if self.arm is Arm.DEVICE else 0
        plan = nearest(allowed(situation), self.arm, s=s, t=layers - self.tail_layers, codec=self.codec)
        if self.drafter == "none":
            return plan
        return with_drafts(plan, drafter_named(situation, self.drafter), self.draft_tokens)

    @property
    def label(self) -> str:
        """Short, unique among fixed arms: ``ushape-low-int8-lookup3``."""
        words = [self.arm.value]
        if self.arm in (Arm.SPLIT, Arm.USHAPE):
            words += [str(self.cut), *([f"tail{self.tail_layers}"] if self.tail_layers else [])]
            words += [self.codec.value] if self.codec is not None else []
        return "-".join([*words, *([f"{self.drafter}{self.draft_tokens}"] if self.draft_tokens else [])])

    def options(self) -> dict[str, int | str]:
        """As the registry's ``fixed`` takes them."""
        codec = self.codec.value if self.codec is not None else "any"
        out: dict[str, int | str] = {"arm": self.arm.value, "cut": str(self.cut), "tail_layers": self.tail_layers}
        return out | {"codec": codec, "drafter": self.drafter, "draft_tokens": self.draft_tokens}


def fixed_arms(situation: Situation, *, draft_tokens: int = 3) -> tuple[FixedArm, ...]:
    """The fixed arms that make sense for a situation: every allowed arm, both ends of its cuts, every codec that is
    not dominated; and with each drafter at hand, those of them that it serves at the low end."""
    candidates = enumerate_arms(situation)
    present = dict.fromkeys(block.arm for block in candidates.blocks)
    out = [FixedArm(arm=arm) for arm in present if arm in (Arm.DEVICE, Arm.CLOUD)]
    for arm in present:
        if arm in (Arm.SPLIT, Arm.USHAPE):
            out += [FixedArm(arm=arm, cut=cut, codec=codec) for codec in candidates.codecs for cut in ("low", "high")]
    drafted = []
    for statistics in situation.drafts:
        length = min(draft_tokens, len(statistics.survival))
        for plain in out:
            if plain.arm not in statistics.arms or plain.cut == "high":
                continue
            cut: int | str = statistics.front_layers if statistics.front_layers else plain.cut
            drafting = FixedArm(arm=plain.arm, cut=cut, codec=plain.codec, drafter=statistics.name, draft_tokens=length)
            if drafting.plan(situation).draft_tokens:
                drafted.append(drafting)
    return (*out, *drafted)


class FixedStrategy(Passive):
    """Always the same arm."""

    def __init__(self, arm: FixedArm) -> None:
        self.arm = arm

    def choose(self, task: Task) -> SplitPlan:
        return self.arm.plan(task.situation)


def device_only(situation_facts: Facts, seed: int) -> FixedStrategy:
    """Every layer on the device."""
    return FixedStrategy(FixedArm(arm=Arm.DEVICE))


def cloud_only(situation_facts: Facts, seed: int) -> FixedStrategy:
    """Token ids up, tokens down."""
    return FixedStrategy(FixedArm(arm=Arm.CLOUD))


def cloud_drafted(
    situation_facts: Facts, seed: int, *, drafter: str = "cloud-mtp", draft_tokens: int = 3
) -> FixedStrategy:
    """Cloud-only whose cloud drafts for itself."""
    return FixedStrategy(FixedArm(arm=Arm.CLOUD, drafter=drafter, draft_tokens=draft_tokens))


def fixed(
    situation_facts: Facts,
    seed: int,
    *,
    arm: str = "ushape",
    cut: str = "low",
    tail_layers: int = 0,
    codec: str = "any",
    drafter: str = "none",
    draft_tokens: int = 0,
) -> FixedStrategy:
    """One arm, cut, codec and drafter."""
    try:
        kind, coding = Arm(arm), None if codec == "any" else Codec(codec)
    except ValueError as error:
        arms, codecs = ", ".join(a.value for a in Arm), ", ".join(c.value for c in Codec)
        raise InputError(f"{error}: arms are {arms}; codecs are any, {codecs}") from None
    where: int | str = int(cut) if _WHOLE.fullmatch(cut) else cut
    return FixedStrategy(
        FixedArm(arm=kind, cut=where, tail_layers=tail_layers, codec=coding, drafter=drafter, draft_tokens=draft_tokens)
    )
