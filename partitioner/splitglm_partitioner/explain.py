"""A decision in words and as a plain-text table."""

from __future__ import annotations

from splitglm_core.plan import Arm
from splitglm_partitioner.breakdown import Parts
from splitglm_partitioner.policy import Choice, Decision

_HEADINGS = ("arm", "s", "t", "codec", "TTFT", "tok/s", "total", "up", "down", "memory", "value")
_PLACES = (
    ("front_s", "front"),
    ("codec_s", "codec"),
    ("uplink_s", "uplink"),
    ("overhead_s", "overhead"),
    ("rtt_s", "round trip"),
    ("queue_s", "cloud queue"),
    ("back_s", "back"),
    ("downlink_s", "downlink"),
    ("tail_s", "tail"),
    ("head_s", "head"),
)


def table(decision: Decision) -> str:
    """One row per arm: the chosen plan (marked ``*``), the runners-up best first, then excluded arms with reasons."""
    rows = [_row(choice, "*" if choice is decision.chosen else "") for choice in _choices(decision)]
    widths = [max(len(line[i]) for line in [_HEADINGS, *rows]) for i in range(len(_HEADINGS))]
    lines = [_HEADINGS, *rows]
    out = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    out += [f"{excluded.arm.value}: not allowed, {excluded.detail}" for excluded in decision.excluded]
    return "\n".join(out)


def in_words(decision: Decision) -> str:
    """A short paragraph: what was chosen, what it should cost, where the time goes, and why not the others."""
    plan, cost, request = decision.plan, decision.breakdown, decision.situation.request
    facts = dict(pair.split("=", 1) for pair in decision.why.split(";"))
    out = [
        f"Chosen: {plan}.",
        f"Expected: first token after {_seconds(cost.ttft_s)}, then {_rate(cost.per_token_s)} tokens/s; "
        f"{_seconds(cost.total_s)} for {request.expected_new_tokens} tokens.",
        f"A decode step: {_places(cost.step)}.",
    ]
    if request.cached_tokens(plan):
        new = request.prompt_tokens - request.cached_tokens(plan)
        out.append(f"The open session goes on: {new} of {request.prompt_tokens} prompt tokens are new.")
    if plan.arm in (Arm.SPLIT, Arm.USHAPE):
        out.append(_cut(facts))
    if decision.runners_up:
        out.append(f"Next best: {decision.runners_up[0].plan}, {float(facts['margin']):.3g} dearer.")
    out += [f"Not allowed: {excluded.arm.value}, {excluded.detail}." for excluded in decision.excluded]
    return "\n".join(out)


def _choices(decision: Decision) -> tuple[Choice, ...]:
    return (decision.chosen, *decision.runners_up)


def _row(choice: Choice, mark: str) -> tuple[str, ...]:
    plan, cost = choice.plan, choice.breakdown
    sends_hidden = plan.arm in (Arm.SPLIT, Arm.USHAPE)
    return (
        plan.arm.value + mark,
        str(plan.s),
        str(plan.t),
        plan.codec.value if sends_hidden else "-",
        _seconds(cost.ttft_s),
        _rate(cost.per_token_s),
        _seconds(cost.total_s),
        _bytes(cost.uplink_bytes),
        _bytes(cost.downlink_bytes),
        _bytes(cost.device_memory_bytes),
        f"{choice.value:.4g}",
    )


def _cut(facts: dict[str, str]) -> str:
    places = {
        "low": "The cut is the lowest allowed",
        "high": "The cut is the highest allowed",
        "interior": "The cut lies inside the allowed range",
        "only": "The cut is the only one allowed",
    }
    limits = facts["limited-by"]
    return places[facts["cut"]] + (f"; limited by {limits.replace(',', ', ')}." if limits != "none" else ".")


def _places(parts: Parts) -> str:
    seconds = [(getattr(parts, name) or 0.0, label) for name, label in _PLACES]
    shown = sorted((pair for pair in seconds if pair[0] > 0.0), key=lambda pair: -pair[0])
    return ", ".join(f"{label} {_seconds(value)}" for value, label in shown) or "no time at all"


def _seconds(value: float) -> str:
    if value >= 1.0:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def _rate(per_token_s: float) -> str:
    return f"{1.0 / per_token_s:.1f}" if per_token_s > 0.0 else "unbounded"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
