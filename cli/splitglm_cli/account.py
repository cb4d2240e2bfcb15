"""A reply's account: in words for a person, as plain values for a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from splitglm_cli.text_table import text_facts
from splitglm_core.version import VERSION

if TYPE_CHECKING:
    from splitglm_edge import Stats


def account_in_words(stats: Stats, *, seed: int | None) -> str:
    """A few lines: plan and why, speed, bytes, stages and what went wrong on the way. ``seed`` None: greedy."""
    stages = ", ".join(
        f"{name} {_seconds(value)}" for name, value in sorted(stats.stage_s.items(), key=lambda p: -p[1])
    )
    facts = [
        ("plan", str(stats.plan)),
        ("why", stats.why),
        (
            "tokens",
            f"{stats.prompt_tokens} in ({stats.kept_tokens} kept from before), {stats.new_tokens} out, {stats.finish}",
        ),
        (
            "speed",
            f"TTFT {_seconds(stats.ttft_s)}, then {stats.tokens_per_s:.1f} tok/s, {_seconds(stats.total_s)} in all\n"
            f"(from when the plan was ready: TTFT {_seconds(max(0.0, stats.ttft_s - stats.ready_s))}, predicted "
            f"{_seconds(stats.predicted_ttft_s)}; then predicted {_rate(stats.predicted_per_token_s)} tok/s)",
        ),
        ("bytes", f"{stats.bytes_up:,} up, {stats.bytes_down:,} down, {stats.round_trips} round trips"),
        ("stages", stages or "-"),
    ]
    if stats.round_trips:
        cloud = f"computed {_seconds(stats.cloud_compute_s)}, queued {_seconds(stats.cloud_queue_s)}"
        cloud += f", swept {_seconds(stats.cloud_sweep_s)}"
        facts.append(("cloud", cloud + (f", {stats.reconnects} reconnects" if stats.reconnects else "")))
    if seed is not None:
        facts.append(("seed", str(seed)))
    if stats.fallbacks:
        facts.append(("fallbacks", "\n".join(stats.fallbacks)))
    return text_facts(facts)


def account_as_json(
    stats: Stats, *, model: str, text: str, token_ids: list[int], seed: int | None, providers: tuple[str, ...]
) -> dict[str, Any]:
    """The document of ``run --json``."""
    from splitglm_glm.huge_pages import huge_pages_status

    pages = huge_pages_status()
    numbers = stats.as_dict()
    return {
        "model": model,
        "text": text,
        "token_ids": token_ids,
        "plan": numbers.pop("plan"),
        "why": numbers.pop("why"),
        "statistics": {**numbers, "seed": seed},
        "machine": {
            "version": VERSION,
            "providers": list(providers),
            "huge_pages": {"active": pages.active, "reason": pages.reason},
        },
    }


def _rate(per_token_s: float) -> str:
    return f"{1 / per_token_s:.1f}" if per_token_s > 0.0 else "-"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1.0 else f"{1e3 * value:.0f} ms"
