"""The plans that the demo compares, and how one of them is run and written down."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from splitglm_core.errors import InternalError
from splitglm_core.plan import Arm, Codec, Privacy, SplitPlan

if TYPE_CHECKING:
    from splitglm_edge import Agent, Stats

_WARM_UP_TOKENS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoArm:
    """One fixed plan; ``exact`` when its numerics equal those of the device alone, so that its text must too."""

    name: str
    arm: Arm
    s: int
    t: int
    codec: Codec

    @property
    def sends_hidden(self) -> bool:
        return self.arm in (Arm.SPLIT, Arm.USHAPE)

    @property
    def exact(self) -> bool:
        return not self.sends_hidden or self.codec is Codec.FP32


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRow:
    """What one plan did.

    Attributes:
        same_tokens: leading tokens of the answer that equal those of the device alone.
        same_as_device: all of them, and no others.
        up_per_token, down_per_token: bytes of sealed records over all tokens, prompt and answer.
    """

    arm: DemoArm
    plan: SplitPlan
    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    ttft_s: float
    tokens_per_s: float
    bytes_up: int
    bytes_down: int
    same_tokens: int
    same_as_device: bool

    @property
    def up_per_token(self) -> float:
        return self.bytes_up / (self.prompt_tokens + len(self.token_ids))

    @property
    def down_per_token(self) -> float:
        return self.bytes_down / (self.prompt_tokens + len(self.token_ids))

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "name": self.arm.name,
            "arm": self.plan.arm.value,
            "s": self.plan.s,
            "t": self.plan.t,
            "codec": self.arm.codec.value if self.arm.sends_hidden else None,
            "exact": self.arm.exact,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "prompt_tokens": self.prompt_tokens,
            "ttft_s": round(self.ttft_s, 6),
            "tokens_per_s": round(self.tokens_per_s, 3),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "up_bytes_per_token": round(self.up_per_token, 1),
            "down_bytes_per_token": round(self.down_per_token, 1),
            "same_tokens": self.same_tokens,
            "same_as_device": self.same_as_device,
        }


def demo_arms(layers: int) -> tuple[DemoArm, ...]:
    """Every kind of plan of a model with ``layers`` >= 4 layers; the device alone comes first."""
    half, quarter = layers // 2, layers // 4
    cuts = ((Arm.SPLIT, half, layers), (Arm.USHAPE, quarter, layers - quarter))
    return (
        DemoArm(name="device only", arm=Arm.DEVICE, s=layers, t=layers, codec=Codec.FP32),
        DemoArm(name="cloud only", arm=Arm.CLOUD, s=0, t=layers, codec=Codec.FP32),
        *(
            DemoArm(name="split" if arm is Arm.SPLIT else "U-shape", arm=arm, s=s, t=t, codec=codec)
            for codec in (Codec.FP32, Codec.BF16, Codec.INT8)
            for arm, s, t in cuts
        ),
    )


def run_arm(agent: Agent, arm: DemoArm, prompt: str, max_tokens: int, reference: tuple[int, ...] | None) -> DemoRow:
    """Answer ``prompt`` by one plan, after a warm-up that loads its layers; ``reference`` is the device's answer."""
    _answer(agent, arm, prompt, _WARM_UP_TOKENS)
    text, ids, stats = _answer(agent, arm, prompt, max_tokens)
    expected = ids if reference is None else reference
    same = next(
        (i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), min(len(ids), len(expected))
    )
    return DemoRow(
        arm=arm,
        plan=stats.plan,
        text=text,
        token_ids=ids,
        prompt_tokens=stats.prompt_tokens,
        ttft_s=stats.ttft_s,
        tokens_per_s=stats.tokens_per_s,
        bytes_up=stats.bytes_up,
        bytes_down=stats.bytes_down,
        same_tokens=same,
        same_as_device=ids == expected,
    )


def _answer(agent: Agent, arm: DemoArm, prompt: str, max_tokens: int) -> tuple[str, tuple[int, ...], Stats]:
    from splitglm_partitioner.request import Fixed

    # Privacy open: this is the person's own cloud, and the plans are to be seen, not forbidden.
    fixed = Fixed(arm=arm.arm, s=arm.s, t=arm.t)
    reply = agent.generate(prompt, max_tokens=max_tokens, privacy=Privacy.OPEN, fixed=fixed, codecs=(arm.codec,))
    with closing(reply):
        text = reply.result()
    if reply.stats is None or reply.stats.fallbacks:
        reasons = "no account" if reply.stats is None else "; ".join(reply.stats.fallbacks)
        raise InternalError(f"the demo's {arm.name} reply did not run as planned: {reasons}")
    return text, tuple(reply.token_ids), reply.stats
