"""``splitglm replay``: decisions recomputed from a decision log, and how far its predictions were off."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from splitglm_cli import options
from splitglm_core.errors import InputError, NoFeasiblePlan

_SHOWN: Final = 10
"""Decisions that differ, in words; all are in the JSON document."""
_SEEN: Final[tuple[str, ...]] = ("ttft_s", "per_token_s", "total_s")
_BYTES: Final = ("uplink_bytes", "downlink_bytes")


@dataclass(slots=True)
class _Term:
    """A term's pairs of what was predicted and what was measured."""

    predicted: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Medians; the error relative to what was measured, its median and its 90th percentile; and the bias, the mean
        of ``ln(measured / predicted)``, which is above 0 where things take longer than predicted. None for zeros.
        """
        from statistics import median

        pairs = list(zip(self.predicted, self.measured, strict=True))
        errors = sorted(abs(p - m) / abs(m) for p, m in pairs if m)
        ratios = [math.log(m / p) for p, m in pairs if p > 0.0 and m > 0.0]
        return {
            "replies": len(self.measured),
            "predicted": median(self.predicted),
            "measured": median(self.measured),
            "error": median(errors) if errors else None,
            "error_p90": errors[min(len(errors) - 1, int(0.9 * len(errors)))] if errors else None,
            "bias": sum(ratios) / len(ratios) if ratios else None,
        }


@dataclass(slots=True)
class _Report:
    decisions: int = 0
    comparable: int = 0
    different: list[str] = field(default_factory=list)
    terms: dict[str, _Term] = field(default_factory=dict)
    arms: dict[str, dict[str, _Term]] = field(default_factory=dict)  # of the times a user sees, by arm

    def take(self, number: int, line: dict[str, Any]) -> None:
        """One line of the log."""
        self.decisions += 1
        difference = _difference(line["decision"])
        if difference is not None:
            self.different.append(f"decision {number}: {difference}")
        if not line["comparable"]:
            return
        self.comparable += 1
        for name in line["predicted"].keys() & line["measured"].keys():
            kept = [self.terms.setdefault(name, _Term())]
            if name in _SEEN and difference is None:
                kept.append(self.arms.setdefault(_arm(line["decision"]), {}).setdefault(name, _Term()))
            for term in kept:
                term.predicted.append(float(line["predicted"][name]))
                term.measured.append(float(line["measured"][name]))


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What --decision-log wrote.")],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Recompute every decision of FILE, and compare what was predicted with what was measured. Runs nothing."""
    from splitglm_edge.decision_log import read_lines

    report = _read(read_lines(file))
    if not report.decisions:
        raise InputError(f"{file} holds no decision", "name a file that --decision-log wrote")
    terms = {name: report.terms[name].summary() for name in sorted(report.terms, key=_order)}
    arms = {arm: {name: of[name].summary() for name in _SEEN if name in of} for arm, of in sorted(report.arms.items())}
    if as_json:
        document = {
            "decisions": report.decisions,
            "reproduced": report.decisions - len(report.different),
            "different": report.different,
            "comparable": report.comparable,
            "terms": terms,
            "arms": arms,
        }
        print(json.dumps(document), flush=True)
    else:
        same = report.decisions - len(report.different)
        print(f"{same} of {report.decisions} decisions come out the same; {report.comparable} replies are comparable")
        for text in report.different[:_SHOWN]:
            print(text)
        if terms:
            print()
            print(_table(terms), flush=True)
        for arm, of in arms.items():
            print(f"\nwhere the arm was {arm}\n{_table(of)}", flush=True)
    if report.different:
        raise InputError(
            f"{len(report.different)} of {report.decisions} decisions do not come out the same",
            "the log is of another release, or was changed",
        )


def _read(lines: Iterable[dict[str, Any]]) -> _Report:
    report = _Report()
    for number, line in enumerate(lines, 1):
        report.take(number, line)
    return report


def _difference(recorded: str) -> str | None:
    """What is not as recorded, in words; None when the decision comes out the same."""
    from splitglm_partitioner.decision_log import replay as recompute
    from splitglm_partitioner.typed_json import to_plain

    try:
        decision = recompute(recorded)
    except (InputError, NoFeasiblePlan) as error:
        return error.what
    before = json.loads(recorded)
    if before["plan"] != json.loads(json.dumps(to_plain(decision.plan))):
        return f"now {decision.plan}"
    if not _same_value(before["value"], decision.value) or _reason(before["why"]) != _reason(decision.why):
        return f"the same plan for another reason: {decision.why}, value {decision.value:.6g}"
    return None


def _arm(recorded: str) -> str:
    """Of a decision that came out the same."""
    from splitglm_core.plan import SplitPlan
    from splitglm_partitioner.typed_json import read

    plan = read(SplitPlan, json.loads(recorded)["plan"], "plan")
    return str(plan.arm.value)


def _same_value(before: object, now: float) -> bool:
    """But for rounding: processors add up the terms of a price in different orders."""
    from splitglm_partitioner.decision import TIE_RELATIVE

    return isinstance(before, float) and math.isclose(before, now, rel_tol=TIE_RELATIVE)


def _reason(why: object) -> list[str]:
    """The pairs of ``why`` without the margin, which is a difference of two values."""
    return [pair for pair in str(why).split(";") if not pair.startswith("margin=")]


def _order(term: str) -> tuple[bool, str]:
    """What a user waits for first, then the parts of it."""
    return term not in _SEEN, term


def _table(terms: dict[str, dict[str, Any]]) -> str:
    rows = [("term", "replies", "predicted", "measured", "error", "p90", "bias")]
    for name, of in terms.items():
        shown = (_amount(name, of["predicted"]), _amount(name, of["measured"]), _share(of["error"]))
        errors = (_share(of["error_p90"]), "-" if of["bias"] is None else f"{of['bias']:+.3f}")
        rows.append((name.removesuffix("_s"), str(of["replies"]), *shown, *errors))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _amount(term: str, value: float) -> str:
    if term in _BYTES:
        return f"{value:,.0f} B"
    if not term.endswith("_s"):
        return f"{value:.4g}"
    return f"{value:.3g} s" if value >= 1.0 else f"{1e3 * value:.3g} ms"


def _share(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:.1f} %"
