"""Studies as one HTML page that needs nothing else, one Markdown page with SVG files, and plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from splitglm_partitioner.typed_json import to_plain
from splitglm_sims.study import figures, tables
from splitglm_sims.study.columns import ARMS
from splitglm_sims.study.goals import FIXED, GUARD, REGRET, Verdict, verdicts
from splitglm_sims.study.statistics import Interval
from splitglm_sims.study.store import Results, privacy_word
from splitglm_sims.study.summary import Group, StrategySummary, groups

HTML: Final = "report.html"
MARKDOWN: Final = "report.md"
FIGURES: Final = "figures"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One study, read and judged."""

    results: Results
    groups: tuple[Group, ...]
    verdicts: tuple[Verdict, ...]

    @classmethod
    def of(cls, folder: Path, progress: Progress = lambda what, done, total: None) -> Section:
        """Read a study's folder. InputError when it is not finished or damaged."""
        results = Results.open(folder)
        found = tuple(groups(results, progress))
        return cls(results=results, groups=found, verdicts=verdicts(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """``file`` is its name in the folder of figures, ``svg`` its text."""

    file: str
    caption: str
    svg: str


def write_report(
    sections: Sequence[Section], folder: Path, progress: Progress = lambda what, done, total: None
) -> tuple[Path, Path]:
    """Write ``report.html``, ``report.md`` and the figures; returns the two paths. Equal results, equal bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("splitglm_sims.study", "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": Markup, "cell": _markdown_cell}
    pages = []
    total, done = sum(len(section.groups) for section in sections), 0
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    for number, section in enumerate(sections):
        drawn = []
        for group in section.groups:
            drawn.append(_group_figures(f"{number}", group))
            done += 1
            progress("drawing", done, total)
        overview = _goal_figures(f"{number}", section)
        for figure in [*overview, *(one for some in drawn for one in some)]:
            (folder / FIGURES / figure.file).write_text(figure.svg, encoding="utf-8")
        pages.append(_page(section, overview, drawn))
    paths = (folder / HTML, folder / MARKDOWN)
    for path in paths:
        text = environment.get_template(path.name + ".j2").render(studies=pages, figures=FIGURES)
        path.write_text(text, encoding="utf-8")
    return paths


def to_json(section: Section) -> dict[str, Any]:
    """The figures of a study as plain values; what is unknown is null."""
    return {
        "study": section.results.config.name,
        "about": section.results.config.about,
        "made_by": to_plain(section.results.made_by),
        "seeds": list(section.results.config.seeds),
        "goals": [_plain_verdict(verdict) for verdict in section.verdicts],
        "groups": [
            {
                "link": group.link.name,
                "use": None if group.link.use is None else group.link.use.value,
                "workload": group.workload,
                "privacy": privacy_word(group.privacy),
                "devices": group.devices,
                "strategies": [_plain_strategy(one) for one in group.strategies],
            }
            for group in section.groups
        ],
    }


def _page(section: Section, overview: list[Figure], drawn: list[list[Figure]]) -> dict[str, Any]:
    config = section.results.config
    judged = [verdict for verdict in section.verdicts if verdict.met is not None]
    return {
        "name": config.name,
        "about": config.about,
        "met": sum(verdict.met is True for verdict in judged),
        "judged": len(judged),
        "facts": tables.facts(section.results),
        "goals": tables.goals(section.verdicts),
        "tables": [tables.relative_cost(section.groups), tables.strategies(config), tables.links(config)],
        "overview": overview,
        "groups": [
            {"name": group.name, "tables": [tables.times(group), tables.choices(group)], "figures": figures}
            for group, figures in zip(section.groups, drawn, strict=True)
        ],
    }


def _goal_figures(prefix: str, section: Section) -> list[Figure]:
    found = []
    for name, goal in (("regret", REGRET), ("fixed", FIXED), ("guard", GUARD)):
        svg = figures.verdict_bars(section.verdicts, goal)
        if svg:
            caption = f"{goal[0].upper()}{goal[1:]}, with 95 % intervals and the bound (dashed)"
            found.append(Figure(file=f"{prefix}-goal-{name}.svg", caption=caption, svg=svg))
    return found


def _group_figures(prefix: str, group: Group) -> list[Figure]:
    name = "-".join(
        filter(None, (group.link.name, group.workload, privacy_word(group.privacy), str(group.devices or "")))
    )
    hidden = len(group.strategies) - len(figures.shown(group))
    others = f"; {hidden} more strategies are in the table" if hidden else ""
    drawn = (
        ("times", f"Cumulative distributions{others}", figures.distributions(group)),
        ("regret", f"Cumulative regret, mean over seeds{others}", figures.regret_curves(group)),
        ("line", "Time line: the link, the arm of each request, its time", figures.time_line(group)),
    )
    safe = "".join(c if c.isalnum() or c in "-." else "-" for c in name)
    return [
        Figure(file=f"{prefix}-{safe}-{kind}.svg", caption=f"{group.name}: {caption}", svg=svg)
        for kind, caption, svg in drawn
        if svg
    ]


def _plain_verdict(verdict: Verdict) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(verdict)
    return plain | {"measured": _plain_interval(verdict.measured), "worst_seed": _known(verdict.worst_seed)}


def _plain_strategy(one: StrategySummary) -> dict[str, Any]:
    spreads = {"ttft": one.ttft, "per_token": one.per_token, "total": one.total}
    errors = {"ttft_prediction": one.ttft_error, "per_token_prediction": one.per_token_error}
    return {
        "label": one.label,
        "strategy": one.entry.name,
        "options": dict(one.entry.options),
        "role": one.entry.role.value,
        "requests": one.requests,
        "failed": dict(one.failures),
        "mean_value": _known(one.mean_value),
        "regret": _plain_interval(one.regret),
        "over_clairvoyant": _plain_interval(one.over_oracle),
        **{
            name: {"p50_s": _known(spread.p50_s), "p95_s": _known(spread.p95_s), "p99_s": _known(spread.p99_s)}
            for name, spread in spreads.items()
        },
        "uplink_bytes": _known(one.uplink_bytes),
        "downlink_bytes": _known(one.downlink_bytes),
        "energy_j": _known(one.energy_j),
        "price": _known(one.price),
        "late": _known(one.late),
        "probe_share": _known(one.probe_share),
        "arms": {arm.value: _known(share) for arm, share in zip(ARMS, one.arms, strict=True)},
        "drafted": _known(one.drafted),
        **{
            name: {"count": error.count, "median_abs": _known(error.median_abs), "bias": _known(error.bias)}
            for name, error in errors.items()
        },
        "facts": {name: _known(value) for name, value in one.facts},
    }


def _plain_interval(interval: Interval) -> dict[str, float | None]:
    return {name: _known(getattr(interval, name)) for name in ("estimate", "low", "high")}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _markdown_cell(text: str) -> str:
    """Text that neither ends a cell nor begins markup."""
    return "".join("\\" + c if c in "\\|<`*_[" else c for c in " ".join(text.split()))
