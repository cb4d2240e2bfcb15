"""Figures as SVG text: equal data give equal bytes, whatever the day or the folder."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from splitglm_sims.study.columns import ARMS
from splitglm_sims.study.config import Role
from splitglm_sims.study.goals import Verdict
from splitglm_sims.study.statistics import Curve
from splitglm_sims.study.store import privacy_word
from splitglm_sims.study.summary import Group, StrategySummary, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LINES: Final = 8
_SETTINGS: Final[dict[Any, Any]] = {
    "svg.hashsalt": "splitglm",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "path.simplify": True,
    "text.parse_math": False,  # a label may hold a dollar sign
}
_BITS: Final = 8e-6  # Mbit per byte
_ARM_COLOURS: Final = ("#1b6ca8", "#d1495b", "#66a182", "#edae49")


def shown(group: Group) -> tuple[StrategySummary, ...]:
    """The strategies that a figure has room for: the judged ones, the sides, then the cheapest of the others."""
    first = [*group.of_role(Role.JUDGED), *group.of_role(Role.SIDE)]
    others = sorted(group.of_role(Role.RIVAL, Role.FIXED), key=lambda one: one.mean_value)
    return tuple([*first, *others][: max(MAX_LINES, len(first))])


def distributions(group: Group) -> str:
    """Three panels: cumulative distributions of TTFT, time per further token and whole time."""
    panels: tuple[tuple[str, Callable[[StrategySummary], Curve]], ...] = (
        ("time to first token (s)", lambda one: one.ttft.cdf),
        ("time per further token (s)", lambda one: one.per_token.cdf),
        ("whole answer (s)", lambda one: one.total.cdf),
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), sharey=True)
        for panel, (title, curve_of) in zip(axes, panels, strict=True):
            for number, one in enumerate(shown(group)):
                curve = curve_of(one)
                panel.plot(curve.x, curve.y, drawstyle="steps-post", label=one.label, **_style(one, number))
            panel.set_xlabel(title)
            _log_x(panel)
        axes[0].set_ylabel("share of requests")
        axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    return _svg(draw, f"cdf {group.name}", width=10.5, height=2.9)


def regret_curves(group: Group) -> str:
    """Cumulative regret over requests, by each yardstick that the study has; empty where it has none."""
    every: tuple[tuple[str, Callable[[StrategySummary], Curve]], ...] = (
        ("beyond the best plan in one's own state", lambda one: one.cumulative),
        ("beyond the clairvoyant strategy's own run", lambda one: one.cumulative_over_oracle),
    )
    panels = [(title, curve_of) for title, curve_of in every if any(curve_of(one).x for one in shown(group))]
    if not panels:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, (title, curve_of) in zip(axes, panels, strict=True):
            ends = []
            for number, one in enumerate(shown(group)):
                curve = curve_of(one)
                if curve.x:
                    panel.plot(curve.x, curve.y, label=one.label, **_style(one, number))
                    ends.append(abs(curve.y[-1]))
            panel.set_xlabel("requests")
            panel.set_title(title, fontsize="medium")
            if max(ends) > 30.0 * min(ends):  # a line that is best by far would lie on the axis
                panel.set_yscale("symlog", linthresh=max(1e-3, 0.01 * max(ends)))
        axes[0].set_ylabel("cumulative cost")
        axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    return _svg(draw, f"regret {group.name}", width=4.0 * len(panels) + 2.5, height=3.1)


def time_line(group: Group) -> str:
    """The judged strategy's way through its first world: the link, the arm of each request, what it took."""
    line = group.timeline
    if line is None or not line.at_s:
        return ""

    def draw(figure: Figure) -> None:
        link, arms, spent = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 1.5))
        for name, rates in (("down", line.down_bytes_per_s), ("up", line.up_bytes_per_s)):
            mbit = np.array(rates) * _BITS
            link.plot(line.at_s, np.where(mbit > 0.0, mbit, np.nan), ".-", markersize=3, linewidth=0.5, label=name)
        if max(*line.down_bytes_per_s, *line.up_bytes_per_s) > 0.0:
            link.set_yscale("log")
        link.set_ylabel("link (Mbit/s)")
        link.legend(loc="upper right", ncols=2)
        _draw_arms(arms, line)
        spent.plot(line.at_s, line.total_s, ".", markersize=3, color="#333333")
        spent.set_ylabel("answer (s)")
        spent.set_xlabel(f"time (s), {line.label}, seed {line.seed}")

    return _svg(draw, f"time {group.name}", width=10.5, height=4.4)


def verdict_bars(verdicts: Sequence[Verdict], goal: str) -> str:
    """One goal over its rows, with intervals and the bound; empty without rows."""
    rows = [verdict for verdict in verdicts if verdict.goal == goal and verdict.measured.known]
    if not rows:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = [f"{row.judged}: {row.link}, {privacy_word(row.privacy)}" for row in rows]
        for at, row in enumerate(rows):
            colour = "#888888" if row.met is None else "#66a182" if row.met else "#d1495b"
            measured = row.measured
            errors = [[measured.estimate - measured.low], [measured.high - measured.estimate]]
            axes.errorbar([measured.estimate], [at], xerr=np.abs(errors), fmt="o", color=colour, capsize=3)
        axes.axvline(rows[0].bound, color="black", linestyle="--", linewidth=0.9)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(goal)

    return _svg(draw, f"goal {goal}", width=8.0, height=0.9 + 0.27 * len(rows))


def _draw_arms(axes: Axes, line: Timeline) -> None:
    names = [arm.value for arm in ARMS]
    at_s, chosen, best = np.array(line.at_s), np.array(line.arm), np.array(line.best_arm)
    known = best >= 0
    if known.any():
        axes.plot(at_s[known], best[known], "o", markersize=6, fillstyle="none", color="#999999", label="best")
    for number in range(len(names)):
        here = chosen == number
        axes.plot(at_s[here], chosen[here], "o", markersize=2.5, color=_ARM_COLOURS[number])
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.5, len(names) - 0.5)
    if known.any():
        axes.legend(loc="upper right")


def _style(one: StrategySummary, number: int) -> dict[str, Any]:
    if one.entry.role is Role.JUDGED:
        return {"color": "black" if number == 0 else f"C{number}", "linewidth": 2.0}
    return {"color": f"C{number}", "linewidth": 1.1, "linestyle": "--" if one.entry.role is Role.SIDE else "-"}


def _log_x(axes: Axes) -> None:
    """Times of several arms differ by orders of magnitude."""
    low, high = axes.get_xlim()
    data = [value for line in axes.get_lines() for value in np.asarray(line.get_xdata(), np.float64) if value > 0.0]
    if data and math.isfinite(low) and math.isfinite(high) and max(data) > 20.0 * min(data):
        axes.set_xscale("log")


def _svg(draw: Callable[[Figure], None], name: str, *, width: float, height: float) -> str:
    """What ``draw`` puts on a figure; ids carry ``name`` so that several figures fit into one document."""
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context():
        rcdefaults()  # whatever a matplotlibrc of this machine says
        rcParams.update(_SETTINGS)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    body = text[text.index("<svg") :].rstrip() + "\n"
    body = re.sub(r'(\bd|\bx|\by)="[^"]*"', lambda drawn: _rounded(drawn[0]), body)
    prefix = re.sub("[^a-z0-9]+", "-", name.lower())
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}.", body)


def _rounded(drawn: str) -> str:
    """Coordinates to a tenth of a point, which is more than is seen."""
    return re.sub(r"\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}", drawn)
