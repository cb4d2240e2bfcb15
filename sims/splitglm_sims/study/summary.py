"""What a study found: one summary per group of worlds and strategy, small enough to keep for thousands of worlds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np

from splitglm_core.errors import InputError
from splitglm_core.plan import Privacy
from splitglm_sims.strategies.registry import registered, strategy_names
from splitglm_sims.study.columns import ARMS, Columns
from splitglm_sims.study.config import LinkEntry, Role, StrategyEntry
from splitglm_sims.study.regret import SeedTotals, cumulative_regret, regret
from splitglm_sims.study.statistics import (
    UNKNOWN,
    Curve,
    Floats,
    Interval,
    PredictionError,
    distribution,
    prediction_error,
    quantiles,
    ratio_of_sums,
    thinned,
)
from splitglm_sims.study.store import Cell, Results, privacy_word

TIMELINE_REQUESTS: Final = 400
_CDF_POINTS: Final = 81


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Seconds of a group's answered requests; NaN where there is none."""

    p50_s: float
    p95_s: float
    p99_s: float
    cdf: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategySummary:
    """One strategy in one group of worlds.

    Attributes:
        requests: over all seeds.
        failures: ``(reason, count)``, sorted by reason.
        mean_value: of the objective, per request.
        totals: by seed.
        regret: per request, against the best plan in the strategy's own state; unknown where nobody looked.
        cumulative: mean over seeds of the regret up to each request.
        over_oracle: sum of cost over that of a clairvoyant strategy that took part, minus 1: another yardstick, for the
            clairvoyant has gone its own way and stands elsewhere at each request. Unknown where none took part.
        cumulative_over_oracle: likewise, up to each request.
        ttft, per_token, total: of answered requests.
        uplink_bytes, downlink_bytes, energy_j, price: means per request; NaN where unknown.
        late: share of the requests with a deadline that missed it, or had no answer; NaN without any.
        probe_share: of all time, what went into probing the link.
        arms: share of requests by arm, in the order of ``columns.ARMS``.
        drafted: share of requests that decode with drafts.
        ttft_error, per_token_error: of its predictions.
        facts: of the worlds, means over seeds.
    """

    entry: StrategyEntry
    requests: int
    failures: tuple[tuple[str, int], ...]
    mean_value: float
    totals: SeedTotals
    regret: Interval
    cumulative: Curve
    over_oracle: Interval
    cumulative_over_oracle: Curve
    ttft: Spread
    per_token: Spread
    total: Spread
    uplink_bytes: float
    downlink_bytes: float
    energy_j: float
    price: float
    late: float
    probe_share: float
    arms: tuple[float, ...]
    drafted: float
    ttft_error: PredictionError
    per_token_error: PredictionError
    facts: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        return self.entry.label

    @property
    def failed(self) -> int:
        return sum(count for _, count in self.failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The first requests of one world, as one strategy went through them.

    Attributes:
        at_s: starts; ``arm`` and ``best_arm`` index ``columns.ARMS`` (-1: unknown), ``total_s`` is the request's time.
    """

    label: str
    seed: int
    at_s: tuple[float, ...]
    arm: tuple[int, ...]
    best_arm: tuple[int, ...]
    total_s: tuple[float, ...]
    up_bytes_per_s: tuple[float, ...]
    down_bytes_per_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Worlds that differ by their seed only, under every strategy."""

    link: LinkEntry
    workload: str
    privacy: Privacy | None
    devices: int
    strategies: tuple[StrategySummary, ...]
    timeline: Timeline | None

    @property
    def name(self) -> str:
        crowd = f", {self.devices} devices" if self.devices else ""
        return f"{self.link.name}, {self.workload}, {privacy_word(self.privacy)}{crowd}"

    def of_role(self, *roles: Role) -> tuple[StrategySummary, ...]:
        return tuple(strategy for strategy in self.strategies if strategy.entry.role in roles)


def groups(
    results: Results, progress: Callable[[str, int, int], None] = lambda what, done, total: None
) -> Iterator[Group]:
    """Every group of a finished study, one at a time, in the order of its configuration.

    Raises:
        InputError: cells are missing or damaged, or two strategies did not meet the same requests.
    """
    missing = len(results.missing())
    if missing:
        raise InputError(f"{results.folder} lacks {missing} cells", "run the study again: it goes on")
    every = list(results.cells())
    done = 0
    for key, found in groupby(every, lambda cell: (cell.link, cell.workload, cell.privacy, cell.devices)):
        members = list(found)
        done += len(members)
        yield _group(results, key, members)
        progress("reading", done, len(every))


def _group(results: Results, key: tuple[LinkEntry, str, Privacy | None, int], members: list[Cell]) -> Group:
    summaries: list[StrategySummary] = []
    timeline: Timeline | None = None
    told = next((cell.strategy for cell in members if _clairvoyant(cell.strategy)), None)
    oracle = [_by_job(results.read(cell)) for cell in members if cell.strategy == told]
    for entry, found in groupby(members, lambda cell: cell.strategy):
        own = list(found)
        columns = [results.read(cell) for cell in own]
        summaries.append(summarise(entry, columns, oracle))
        if timeline is None and entry.role is Role.JUDGED and not key[3]:
            timeline = _timeline(entry.label, own[0].seed, columns[0])
    counts = {summary.requests for summary in summaries}
    if len(counts) > 1:
        raise InputError(f"strategies met {min(counts)} to {max(counts)} requests in {members[0].key}: not comparable")
    link, workload, privacy, devices = key
    return Group(
        link=link,
        workload=workload,
        privacy=privacy,
        devices=devices,
        strategies=tuple(summaries),
        timeline=timeline,
    )


def summarise(entry: StrategyEntry, seeds: Sequence[Columns], oracle: Sequence[Floats] = ()) -> StrategySummary:
    """One strategy's cells of a group, one per seed; ``oracle``: by seed, a clairvoyant strategy's costs by job."""

    def joined(name: str) -> Floats:
        return np.concatenate([columns[name].astype(np.float64) for columns in seeds])

    answered = np.concatenate([columns.answered for columns in seeds])
    per_token_s = np.concatenate([columns.per_token_s for columns in seeds])
    ttft_s, total_s, deadline_s = joined("ttft_s"), joined("total_s"), joined("deadline_s")
    looked = all(np.isfinite(columns["best_value"]).all() and len(columns) for columns in seeds)
    best = np.array([columns["best_value"].sum() for columns in seeds]) if looked else None
    totals = SeedTotals(np.array([columns["value"].sum() for columns in seeds], np.float64), best)
    return StrategySummary(
        entry=entry,
        requests=len(answered),
        failures=_failures(seeds),
        mean_value=_mean(joined("value")),
        totals=totals,
        regret=regret(totals),
        cumulative=_mean_line([(c["value"], c["best_value"]) for c in seeds]) if looked else Curve((), ()),
        over_oracle=_over(seeds, oracle),
        cumulative_over_oracle=_mean_line([(_by_job(c), base) for c, base in zip(seeds, oracle, strict=False)]),
        ttft=_spread(ttft_s[answered]),
        per_token=_spread(per_token_s[answered]),
        total=_spread(total_s[answered]),
        uplink_bytes=_mean(joined("uplink_bytes")),
        downlink_bytes=_mean(joined("downlink_bytes")),
        energy_j=_mean(joined("energy_j")),
        price=_mean(joined("price")),
        late=_mean(((total_s > deadline_s) | ~answered)[np.isfinite(deadline_s)].astype(np.float64)),
        probe_share=_share(float(joined("probe_s").sum()), float(total_s.sum())),
        arms=tuple(_mean((joined("arm") == i).astype(np.float64)) for i in range(len(ARMS))),
        drafted=_mean((joined("draft_tokens") > 0).astype(np.float64)),
        ttft_error=prediction_error(joined("predicted_ttft_s")[answered], ttft_s[answered]),
        per_token_error=prediction_error(joined("predicted_per_token_s")[answered], per_token_s[answered]),
        facts=_mean_facts(seeds),
    )


def _spread(seconds: Floats) -> Spread:
    p50_s, p95_s, p99_s = quantiles(seconds, (0.5, 0.95, 0.99))
    return Spread(p50_s=p50_s, p95_s=p95_s, p99_s=p99_s, cdf=distribution(seconds, _CDF_POINTS))


def _failures(seeds: Sequence[Columns]) -> tuple[tuple[str, int], ...]:
    found: dict[str, int] = {}
    for columns in seeds:
        for number, reason in enumerate(columns.failures):
            found[reason] = found.get(reason, 0) + int((columns["failure"] == number).sum())
    return tuple(sorted((reason, count) for reason, count in found.items() if count))


def _mean_line(seeds: Sequence[tuple[Floats, Floats]]) -> Curve:
    """Mean over seeds of the regret up to each request that every seed has; of pairs of costs and best costs."""
    shortest = min((len(value) for value, _ in seeds), default=0)
    rows = [cumulative_regret(value[:shortest], best[:shortest]) for value, best in seeds]
    return thinned(np.mean(rows, axis=0)) if rows else Curve((), ())


def _by_job(columns: Columns) -> Floats:
    value: Floats = columns["value"][np.argsort(columns["job"], kind="stable")]
    return value


def _over(seeds: Sequence[Columns], oracle: Sequence[Floats]) -> Interval:
    if len(seeds) != len(oracle):
        return UNKNOWN
    return ratio_of_sums([c["value"].sum() for c in seeds], [values.sum() for values in oracle]).shifted(-1.0)


def _clairvoyant(entry: StrategyEntry) -> bool:
    """False for somebody's own strategy: a report imports nothing that a folder names."""
    return entry.name in strategy_names() and registered(entry.name).clairvoyant


def _mean_facts(seeds: Sequence[Columns]) -> tuple[tuple[str, float], ...]:
    names = sorted({name for columns in seeds for name in columns.facts})
    return tuple((name, _mean(np.array([columns.facts.get(name, math.nan) for columns in seeds]))) for name in names)


def _timeline(label: str, seed: int, columns: Columns) -> Timeline:
    first = {name: columns[name][:TIMELINE_REQUESTS].tolist() for name in columns.of}
    return Timeline(
        label=label,
        seed=seed,
        at_s=tuple(first["start_s"]),
        arm=tuple(first["arm"]),
        best_arm=tuple(first["best_arm"]),
        total_s=tuple(first["total_s"]),
        up_bytes_per_s=tuple(first["up_bytes_per_s"]),
        down_bytes_per_s=tuple(first["down_bytes_per_s"]),
    )


def _mean(values: Floats) -> float:
    """Of the finite ones; NaN where there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else math.nan
