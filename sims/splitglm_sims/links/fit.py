"""Fits the Markov link to recorded rates and prints it as TOML: ``python -m splitglm_sims.links.fit FILE...``.

Time is cut into slots of a second. A slot's state is the quantile group of its downlink rate, or the pair of groups
where both directions were recorded together; slots that carry next to nothing are an outage of their own. Within a
state rates keep their empirical quantiles. Transitions are counted (the maximum likelihood estimate) over the trace
closed to a ring, as traces repeat, and mixed with one jump per recording to any state by its share of time, which
makes every state reachable and leaves the shares as they are.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InputError, SplitGlmError, status_of
from splitglm_partitioner.bounds import check_count
from splitglm_sims.links.files import Asymmetry, RoundTrips
from splitglm_sims.links.markov import LinkState, MarkovLink, generate
from splitglm_sims.links.statistics import (
    OUTAGE_BELOW_BYTES_PER_S,
    RateStatistics,
    binned,
    compared,
    statistics,
    statistics_of,
)
from splitglm_sims.traces import RateTrace, load_trace

Rates = NDArray[np.float64]
QUANTILES = 5
MIN_SLOTS = 30
REPORT_SLOTS = 20_000
MEMORIES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)


def fit(
    down: Sequence[RateTrace],
    *,
    up: Sequence[RateTrace] = (),
    asymmetry: Asymmetry | None = None,
    groups: int = 6,
    up_groups: int = 3,
    round_trips: RoundTrips,
    rest_after_s: float | None = None,
    promotion_s: float = 0.0,
    slot_s: float = 1.0,
) -> MarkovLink:
    """A link whose statistics are those of the traces.

    Args:
        down: one or more recordings, pooled; no transition is counted from one to the next.
        up: recorded at the same time as ``down``, one each; or else ``asymmetry`` says how the uplink follows.
        groups: quantile groups of the downlink's rate; ``up_groups`` of the uplink's.
        round_trips, rest_after_s, promotion_s: of the result; rates do not tell them.

    Raises:
        InputError: less than ``MIN_SLOTS`` slots, or neither or both of ``up`` and ``asymmetry``.
    """
    check_count("groups", groups, 1, 16)
    check_count("up_groups", up_groups, 1, 4)
    if bool(up) == (asymmetry is not None):
        raise InputError("state either recorded uplinks or how the uplink follows from the downlink")
    if up and len(up) != len(down):
        raise InputError(f"{len(down)} recorded downlinks go with as many uplinks, not {len(up)}")
    downs = [binned(trace, slot_s) for trace in down]
    ups = [binned(trace, slot_s) for trace in up] or [rates * (asymmetry or _SAME).up_per_down for rates in downs]
    lengths = [min(len(a), len(b)) for a, b in zip(downs, ups, strict=True)]
    if sum(lengths) < MIN_SLOTS:
        raise InputError(f"{sum(lengths)} slots of {slot_s:g} s are too few to fit a link to", f"take {MIN_SLOTS}")
    joint = np.array([np.concatenate([r[:n] for r, n in zip(rates, lengths, strict=True)]) for rates in (downs, ups)])
    names = [_grouped(joint[0], groups, "d")]
    if up:
        names.append(_grouped(joint[1], up_groups, "u"))
    labels = np.array(["".join(pair) for pair in zip(*names, strict=True)])
    kinds, path = np.unique(labels, return_inverse=True)
    chances = _transitions(path, lengths, len(kinds))
    states = tuple(
        LinkState(
            name=str(kind),
            down_bytes_per_s=_quantiles(joint[0, path == number]),
            up_bytes_per_s=_quantiles(joint[1, path == number]),
            next=tuple(float(chance) for chance in chances[number]),
        )
        for number, kind in enumerate(kinds)
    )
    link = MarkovLink(
        states=states,
        slot_s=slot_s,
        rtt_quantiles_s=(round_trips.rtt_s,),
        jitter_s=round_trips.jitter_s,
        rest_after_s=rest_after_s,
        promotion_s=promotion_s,
    )
    wanted = [statistics_of(rates, slot_s) for rates in (joint if up else joint[:1])]
    return min((replace(link, memory=memory) for memory in MEMORIES), key=lambda tried: _strangeness(tried, wanted))


def _strangeness(link: MarkovLink, wanted: Sequence[RateStatistics]) -> float:
    """Squared differences of the autocorrelations of a long generated scene."""
    scene = generate(link, seed=0, seconds=REPORT_SLOTS * link.slot_s)
    made = [statistics(trace, link.slot_s) for trace in (scene.down, scene.up)]
    pairs = zip(wanted, made[: len(wanted)], strict=True)
    return sum(sum((a - b) ** 2 for a, b in zip(w.autocorrelation, m.autocorrelation, strict=True)) for w, m in pairs)


def to_toml(link: MarkovLink, *, about: str, source: str, asymmetry: Asymmetry | None = None) -> str:
    """The text of a link class file, for reporting."""
    lines = [f"about = {_text(about)}", f"source = {_text(source)}", 'use = "report"', "", "[link]"]
    if asymmetry is not None:
        lines.insert(1, f"uplink = {_text(f'{asymmetry.up_per_down:g} x downlink: {asymmetry.because}')}")
    lines.append(f"slot_s = {link.slot_s:g}")
    lines.append(f"memory = {link.memory:g}")
    lines.append(f"rtt_quantiles_s = {_list(link.rtt_quantiles_s)}")
    lines.append(f"jitter_s = {link.jitter_s:.4g}")
    if link.rest_after_s is not None:
        lines.append(f"rest_after_s = {link.rest_after_s:g}")
    lines.append(f"promotion_s = {link.promotion_s:g}")
    for state in link.states:
        lines += ["", "[[link.states]]", f"name = {_text(state.name)}"]
        lines.append(f"down_bytes_per_s = {_list(state.down_bytes_per_s)}")
        lines.append(f"up_bytes_per_s = {_list(state.up_bytes_per_s)}")
        lines.append(f"next = [{', '.join(f'{chance:.9g}' for chance in state.next)}]")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m splitglm_sims.links.fit", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="recorded downlinks; pooled")
    parser.add_argument("--up", nargs="*", type=Path, default=[], metavar="FILE", help="uplinks, one for each downlink")
    parser.add_argument("--up-per-down", type=float, help="uplink rate as a multiple of the downlink's")
    parser.add_argument("--because", default="", help="why that ratio holds")
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--rtt-ms", type=float, default=50.0)
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--rest-after-s", type=float, help="default: the radio never rests")
    parser.add_argument("--promotion-s", type=float, default=0.0)
    parser.add_argument("--about", default="")
    parser.add_argument("--source", default="", help="default: the names of the files")
    given = parser.parse_args(arguments)
    try:
        asymmetry = None
        if given.up_per_down is not None:
            asymmetry = Asymmetry(up_per_down=given.up_per_down, because=given.because)
        down, up = ([load_trace(path) for path in paths] for paths in (given.files, given.up))
        link = fit(
            down,
            up=up,
            asymmetry=asymmetry,
            groups=given.groups,
            round_trips=RoundTrips(rtt_s=given.rtt_ms * 1e-3, jitter_s=given.jitter_ms * 1e-3),
            rest_after_s=given.rest_after_s,
            promotion_s=given.promotion_s,
        )
        source = given.source or "fitted to " + ", ".join(path.name for path in (*given.files, *given.up))
        print(f"# {_command(given)}")
        print(to_toml(link, about=given.about, source=source, asymmetry=asymmetry), end="")
        print(report(link, down, up), file=sys.stderr)
    except SplitGlmError as error:
        print(error.one_line(), file=sys.stderr)
        return status_of(error).exit_code
    return 0


def _command(given: argparse.Namespace) -> str:
    """What to type for the same figures, beside the files."""
    words = ["python", "-m", "splitglm_sims.links.fit", *(path.name for path in given.files)]
    if given.up:
        words += ["--up", *(path.name for path in given.up)]
    for flag in ("up_per_down", "because", "groups", "rtt_ms", "jitter_ms", "rest_after_s", "promotion_s"):
        value = getattr(given, flag)
        if value not in (None, ""):
            words += ["--" + flag.replace("_", "-"), value if isinstance(value, str) else f"{value:g}"]
    return shlex.join(words)


def report(link: MarkovLink, down: Sequence[RateTrace], up: Sequence[RateTrace] = (), *, seed: int = 0) -> str:
    """Goodness of fit as Markdown: the recordings, one after another, beside a long generated scene."""
    scene = generate(link, seed=seed, seconds=REPORT_SLOTS * link.slot_s)
    parts = []
    for word, traces, made in (("down", down, scene.down), ("up", up, scene.up)):
        if traces:
            recorded = statistics_of(np.concatenate([binned(trace, link.slot_s) for trace in traces]), link.slot_s)
            parts.append(f"{word}\n\n{compared(recorded, statistics(made, link.slot_s))}")
    return "\n\n".join(parts)


_SAME = Asymmetry(up_per_down=1.0, because="both directions were recorded")


def _grouped(rates: Rates, groups: int, letter: str) -> list[str]:
    """The name of each slot's quantile group, slots without data apart."""
    carrying = rates[rates >= OUTAGE_BELOW_BYTES_PER_S]
    if not len(carrying):
        raise InputError("a link that never carries anything cannot be fitted")
    edges = np.unique(np.quantile(carrying, np.linspace(0.0, 1.0, groups + 1)[1:-1]))
    found = np.searchsorted(edges, rates, side="right")
    return [
        f"{letter}-out" if rate < OUTAGE_BELOW_BYTES_PER_S else f"{letter}{group}"
        for rate, group in zip(rates.tolist(), found.tolist(), strict=True)
    ]


def _transitions(path: NDArray[np.int64], lengths: Sequence[int], states: int) -> Rates:
    counts = np.zeros((states, states))
    begin = 0
    for length in lengths:
        ring = path[begin : begin + length]
        np.add.at(counts, (ring, np.roll(ring, -1)), 1.0)
        begin += length
    likely = counts / counts.sum(axis=1, keepdims=True)
    shares = counts.sum(axis=1) / counts.sum()
    jump = 1.0 / len(path)
    mixed: Rates = (1.0 - jump) * likely + jump * shares
    mixed /= mixed.sum(axis=1, keepdims=True)
    return mixed


def _quantiles(rates: Rates) -> tuple[float, ...]:
    carrying = rates[rates >= OUTAGE_BELOW_BYTES_PER_S]
    if len(carrying) < len(rates):
        return (0.0,)
    if len(carrying) < 3:
        return (float(np.exp(np.log(carrying).mean())),)
    return tuple(np.quantile(carrying, np.linspace(0.0, 1.0, QUANTILES)).tolist())


def _list(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


def _text(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'


if __name__ == "__main__":
    sys.exit(main())
