"""A decision in words and as a plain-text table."""

from __future__ import annotations

from splitglm_core.plan import Arm
from splitglm_partitioner.breakdown import Parts
from splitglm_partitioner.policy import Choice, Decision

_HEADINGS = ("arm", "s", "t", "codec", "TTFT", "tok/s", "total", "up", "down", "memory", "value")
_TERMS = {
    "front_s": "front",
    "draft_s": "drafting",
    "codec_s": "codec",
    "seal_s": "sealing",
    "uplink_s": "uplink",
    "uplink_queue_s": "uplink queue",
    "slow_start_s": "slow start",
    "overhead_s": "overhead",
    "rtt_s": "round trip",
    "promotion_s": "radio promotion",
    "queue_s": "cloud queue",
    "sweep_s": "cloud sweep",
    "back_s": "back",
    "downlink_s": "downlink",
    "tail_s": "tail",
    "head_s": "head",
    "calibration_s": "calibration",
}


def table(decision: Decision) -> str:
    """One row per arm: the chosen plan (marked ``*``), the runners-up best first, then excluded arms with reasons.

    Columns for chunk, draft, joules and price are there where any row has something to show in them.
    """
    choices = _choices(decision)
    rows = [_HEADINGS, *(_row(choice, "*" if choice is decision.chosen else "") for choice in choices)]
    for place, heading, cell in (
        (4, "chunk", _chunk if decision.situation.request.chunks else None),
        (4, "draft", _draft),
        (-1, "energy", _energy),
        (-1, "price", _price),
    ):
        cells = [cell(choice) for choice in choices] if cell is not None else []
        if any(text != "-" for text in cells):
            at = place if place >= 0 else len(rows[0]) + place
            rows = [(*row[:at], text, *row[at:]) for row, text in zip(rows, [heading, *cells], strict=True)]
    out = _aligned(rows)
    out += [f"{excluded.arm.value}: not allowed, {excluded.detail}" for excluded in decision.excluded]
    return "\n".join(out)


def terms_table(decision: Decision) -> str:
    """Where the seconds go: one row per named term that is not zero everywhere, two columns per plan.

    The first column of a plan is its prefill, whose places overlap, so that its sum may exceed the TTFT in the last
    row; the second is one further token, which its terms add up to. Calibration is what the arm's factor adds or takes.
    """
    choices = _choices(decision)
    heads = [choice.plan.arm.value + ("*" if choice is decision.chosen else "") for choice in choices]
    rows = [("term", *(f"{head} {what}" for head in heads for what in ("prefill", "token")))]
    for name, label in _TERMS.items():
        values = [getattr(parts, name) for c in choices for parts in (c.breakdown.prefill, c.breakdown.step)]
        if any(values):
            rows.append((label, *(_seconds(value) if value else "-" for value in values)))
    ends = [value for c in choices for value in (c.breakdown.ttft_s, c.breakdown.per_token_s)]
    rows.append(("TTFT, per token", *(_seconds(value) for value in ends)))
    return "\n".join(_aligned(rows))


def in_words(decision: Decision) -> str:
    """A short paragraph: what was chosen, what it should cost, where the time goes, and why not the others."""
    plan, cost, request = decision.plan, decision.breakdown, decision.situation.request
    facts = dict(pair.split("=", 1) for pair in decision.why.split(";"))
    out = [
        f"Chosen: {plan}.",
        f"Expected: first token after {_seconds(cost.ttft_s)}, then {_rate(cost.per_token_s)} tokens/s; "
        f"{_seconds(cost.total_s)} for {request.expected_new_tokens} tokens.",
        f"Of the first token: {_places(cost.prefill)}.",
        f"{'Of a further token' if plan.draft_tokens else 'A decode step'}: {_places(cost.step)}.",
    ]
    if request.chunks:
        out.append(f"The prompt runs in chunks of {plan.chunk_tokens}.")
    if plan.draft_tokens:
        out.append(f"{plan.drafter} drafts {plan.draft_tokens} tokens per round.")
    bill = [f"{cost.energy_j:.3g} J on the device"] if cost.energy_j is not None else []
    bill += [f"a price of {cost.price:.3g}"] if cost.price is not None and plan.arm is not Arm.DEVICE else []
    if bill:
        out.append(f"It should cost {' and '.join(bill)}.")
    if request.cached_tokens(plan):
        new = request.prompt_tokens - request.cached_tokens(plan)
        out.append(f"The open session goes on: {new} of {request.prompt_tokens} prompt tokens are new.")
    if plan.arm in (Arm.SPLIT, Arm.USHAPE):
        out.append(_cut(facts))
    if decision.runners_up:
        out.append(_next_best(decision, facts))
    out += [f"{note[0].upper()}{note[1:]}." for note in decision.notes]
    out += [f"Not allowed: {excluded.arm.value}, {excluded.detail}." for excluded in decision.excluded]
    return "\n".join(out)


_STEERED = {
    "kept": "this arm has served such requests so far, and the other has not been cheaper for long or by much",
    "explored": "this arm has not run for long, and trying it is in the budget",
}


def _next_best(decision: Decision, facts: dict[str, str]) -> str:
    other = decision.runners_up[0]
    margin = other.value - decision.value
    if margin >= 0.0:
        return f"Next best: {other.plan}, {margin:.3g} dearer."
    return f"Cheaper by {-margin:.3g} would be: {other.plan}; but {_STEERED[facts['steering']]}."


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


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _chunk(choice: Choice) -> str:
    return str(choice.plan.chunk_tokens)


def _draft(choice: Choice) -> str:
    return f"{choice.plan.drafter} {choice.plan.draft_tokens}" if choice.plan.draft_tokens else "-"


def _energy(choice: Choice) -> str:
    joules = choice.breakdown.energy_j
    return "-" if joules is None else f"{joules:.3g} J"


def _price(choice: Choice) -> str:
    price = choice.breakdown.price
    return f"{price:.3g}" if price else "-"


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
    seconds = [(getattr(parts, name) or 0.0, label) for name, label in _TERMS.items()]
    shown = sorted((pair for pair in seconds if pair[0]), key=lambda pair: -abs(pair[0]))
    return ", ".join(f"{label} {_seconds(value)}" for value, label in shown) or "no time at all"


def _seconds(value: float) -> str:
    if value < 0.0:
        return f"-{_seconds(-value)}"
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
