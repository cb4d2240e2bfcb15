"""The tables of a report, as words: one source for HTML, Markdown and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from splitglm_core.errors import InputError
from splitglm_sims.links.fitted import Use, link_class
from splitglm_sims.presets.machines import CLOUDS, DEVICES, CloudPreset, DevicePreset
from splitglm_sims.presets.shelf import Shelf
from splitglm_sims.strategies import cloud_mtp
from splitglm_sims.strategies.registry import registered, strategy_names
from splitglm_sims.study.columns import ARMS
from splitglm_sims.study.config import LinkEntry, Role, StrategyEntry, StudyConfig
from splitglm_sims.study.goals import Verdict
from splitglm_sims.study.regret import versus
from splitglm_sims.study.statistics import Interval, PredictionError
from splitglm_sims.study.store import Results, privacy_word
from splitglm_sims.study.summary import Group, Spread, StrategySummary
from splitglm_sims.workloads.acceptance import acceptance_table

NONE = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells of text."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def facts(results: Results) -> Table:
    """What was run."""
    config, made_by = results.config, results.made_by
    weights = {name: getattr(config.objective, name) for name in ("latency", "ttft", "energy", "cloud_cost")}
    world = f"{config.requests} requests" if config.requests is not None else f"{config.seconds:g} s"
    crowd = f", {', '.join(map(str, config.devices))} devices that share a cloud" if config.devices else ""
    rows = [
        ("configuration", made_by.config),
        ("simulator source", made_by.code),
        ("versions", ", ".join(f"{version.name} {version.version}" for version in made_by.versions)),
        ("seeds", ", ".join(map(str, config.seeds))),
        ("each world", f"{world}{crowd}"),
        ("device", _preset(config.device, DEVICES)),
        ("cloud", _preset(config.cloud, CLOUDS)),
        ("conditions", _conditions(config)),
        ("drafters", _drafters(config.drafters)),
        ("workloads", ", ".join(config.workloads)),
        ("privacy", ", ".join(privacy.value for privacy in config.privacy) or "of each request"),
        ("deadlines", "of each request" if config.deadlines else "none"),
        ("objective", " + ".join(f"{weight:g} x {name}" for name, weight in weights.items() if weight)),
        ("classes for reporting", ", ".join(of_use(config.links, Use.REPORT)) or "none"),
        ("classes for tuning", ", ".join(of_use(config.links, Use.TUNE)) or "none"),
        *((f"file {file.path}", file.sha256) for file in made_by.files),
    ]
    return Table(caption="What was run", header=("what", "value"), rows=tuple(rows))


def _preset(name: str, shelf: Shelf[DevicePreset] | Shelf[CloudPreset]) -> str:
    """What a machine is and how far its figures can be trusted."""
    if name not in shelf.names():
        return f"{name}: a file of one's own"
    preset = shelf.load(name)
    return f"{name}: {preset.about}; {preset.basis.value}: {preset.source}"


def _conditions(config: StudyConfig) -> str:
    """What makes the worlds less than ideal; the courses behind it are assumed."""
    given = config.conditions
    spells = {"heat": given.heat, "background load": given.background, "cloud load": given.cloud_load}
    words = [f"{name} (assumed course)" for name, holds in spells.items() if holds]
    jitters = {"device": given.device_jitter, "cloud": given.cloud_jitter}
    words += [f"{name} jitter {sigma:g} (assumed)" for name, sigma in jitters.items() if sigma]
    return ", ".join(words) or "none"


def _drafters(names: Sequence[str]) -> str:
    """Who drafts, and where the chances of drafts come from."""
    sources = [f"acceptance: {acceptance_table().source}"] if set(names) - {cloud_mtp.NAME} else []
    sources += [f"{cloud_mtp.NAME}: not measured here, as published"] if cloud_mtp.NAME in names else []
    return "; ".join([", ".join(names) or "none", *sources])


def of_use(links: Sequence[LinkEntry], use: Use) -> tuple[str, ...]:
    """Names of the classes for one use."""
    return tuple(link.name for link in links if link.use is use)


def strategies(config: StudyConfig) -> Table:
    """Who took part."""
    header = ("strategy", "part", "what it is", "source", "lossy", "clairvoyant")
    return Table(caption="Strategies", header=header, rows=tuple(map(_strategy, config.strategies)))


def links(config: StudyConfig) -> Table:
    """The classes of links."""
    header = ("class", "use", "what it is", "source")
    return Table(caption="Link classes", header=header, rows=tuple(map(_link, config.links)))


def goals(verdicts: Sequence[Verdict]) -> Table:
    """Every goal on every class."""
    header = ("goal", "class", "privacy", "strategy", "against", "measured", "worst seed", "bound", "failed", "met")
    rows = []
    for verdict in verdicts:
        crowd = f", {verdict.devices} devices" if verdict.devices else ""
        against = verdict.rival or "clairvoyant"
        row = (verdict.goal, verdict.link + crowd, privacy_word(verdict.privacy), verdict.judged, against)
        met = {True: "yes", False: "NO", None: "not judged: tuning"}[verdict.met]
        failed = f"{verdict.failed} / {verdict.rival_failed}" if verdict.rival else str(verdict.failed)
        measured = (interval(verdict.measured), number(verdict.worst_seed), f"{verdict.bound:g}")
        rows.append((*row, *measured, failed, met))
    return Table(caption="Goals", header=header, rows=tuple(rows))


def relative_cost(groups: Sequence[Group]) -> Table:
    """Every strategy's cost over that of the judged one (the first strategy where none is judged), group by group."""
    labels = list(dict.fromkeys(one.label for group in groups for one in group.strategies))
    rows = []
    for group in groups:
        base = reference(group)
        found = {one.label: interval(versus(one.totals, base.label, base.totals).ratio) for one in group.strategies}
        rows.append((group.name, *(found.get(label, NONE) for label in labels)))
    caption = "Cost over that of the judged strategy on the same worlds (95 % interval); above 1 is worse"
    return Table(caption=caption, header=("worlds", *labels), rows=tuple(rows))


def reference(group: Group) -> StrategySummary:
    """The one that others are compared with."""
    return next(iter(group.of_role(Role.JUDGED)), group.strategies[0])


def times(group: Group) -> Table:
    """Cost and time of each strategy of a group."""
    header = (
        *(
            "strategy",
            "cost per request",
            "regret",
            "over clairvoyant",
            "TTFT s p50 / p95",
            "further token s p50 / p95",
        ),
        *("answer s p50 / p95", "late %", "requests", "failed"),
    )
    rows = tuple(
        (
            one.label,
            number(one.mean_value),
            interval(one.regret),
            interval(one.over_oracle),
            _spread(one.ttft),
            _spread(one.per_token),
            _spread(one.total),
            number(100 * one.late),
            str(one.requests),
            "; ".join(f"{count} {reason}" for reason, count in one.failures) or "0",
        )
        for one in group.strategies
    )
    return Table(caption=f"Cost and time: {group.name}", header=header, rows=rows)


def choices(group: Group) -> Table:
    """What each strategy chose, sent and foresaw."""
    names = sorted({name for one in group.strategies for name, _ in one.facts})
    header = (
        *("strategy", *(f"{arm.value} %" for arm in ARMS), "drafts %", "probing %", "kB up", "kB down", "J", "price"),
        *("TTFT predicted", "further token predicted", *names),
    )
    rows = []
    for one in group.strategies:
        row = [one.label, *(number(100 * share) for share in one.arms), number(100 * one.drafted)]
        row += [number(100 * one.probe_share), number(one.uplink_bytes / 1e3), number(one.downlink_bytes / 1e3)]
        row += [number(one.energy_j), number(one.price), _error(one.ttft_error), _error(one.per_token_error)]
        found = dict(one.facts)
        rows.append((*row, *(number(found.get(name, math.nan)) for name in names)))
    return Table(caption=f"Choices: {group.name}", header=header, rows=tuple(rows))


def number(value: float) -> str:
    """Three significant digits; a dash for what is unknown."""
    if not math.isfinite(value):
        return NONE
    if value == 0.0 or 1e-3 <= abs(value) < 1e4:
        digits = 3 if value == 0.0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{min(digits, 4)}f}"
    return f"{value:.2e}"


def interval(value: Interval) -> str:
    if not value.known:
        return NONE
    return f"{value.estimate:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _spread(spread: Spread) -> str:
    return f"{number(spread.p50_s)} / {number(spread.p95_s)}"


def _error(error: PredictionError) -> str:
    return NONE if not error.count else f"off {100 * error.median_abs:.1f} %, bias {100 * error.bias:+.1f} %"


def _strategy(entry: StrategyEntry) -> tuple[str, ...]:
    options = ", ".join(f"{name}={value}" for name, value in entry.options)
    if entry.name not in strategy_names():  # somebody's own: a report imports nothing that a folder names
        return (entry.label, entry.role.value, f"{entry.name} {options}".strip(), NONE, NONE, NONE)
    known = registered(entry.name)
    about = f"{known.about} ({options})" if options else known.about
    marks = ("yes" if known.lossy else "no", "yes" if known.clairvoyant else "no")
    return (entry.label, entry.role.value, about, known.source, *marks)


def _link(link: LinkEntry) -> tuple[str, ...]:
    use = NONE if link.use is None else link.use.value
    if not link.generated:
        ratio = f"; uplink {link.up_per_down:g} x downlink: {link.because}" if link.up_per_down is not None else ""
        rtt = f"{link.rtt_s:g} s stated" if link.rtt_s is not None else f"{link.round_trips.value} in the file"
        files = ", ".join(path for path in (link.down, link.up) if path is not None)
        return (link.name, use, "recorded", f"{files}{ratio}; round trip: {rtt}")
    try:
        shipped = link_class(link.name)
    except InputError:
        return (link.name, use, "generated", NONE)
    return (link.name, use, f"generated: {shipped.about}", "; ".join(filter(None, (shipped.source, shipped.uplink))))
