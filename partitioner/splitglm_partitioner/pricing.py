"""Seconds and joules of many plans at once: the one place where those of every arm are added up.

Prefill is a line of machines (front on the device, uplink, back in the cloud and, where the tail's KV caches need every
position, downlink and tail) through which the chunks pass in order, see ``pipeline``. Front and tail share the device,
which runs all fronts first. Propagation and the waits in the cloud delay all chunks alike and occupy no machine. The
uplink is free when what others handed over has left; waking the radio and slow start delay the first upload. Where
prefill grows with the context, the time to first token is at most ``pipeline.TOLERANCE`` too short; all else is exact.

Decode has no overlap, except that a cloud that samples and embeds by itself sends tokens while computing the next.
Last, the arm's factors (``factors``) multiply both times.
All plans of a grid, all chunk sizes and draft lengths are priced together (``basis`` says how); ``cost`` prices a grid
of one, so there is no second formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from splitglm_partitioner.basis import Basis, Layout, chunk_amounts, fixed_amounts, rates_of
from splitglm_partitioner.decoding_rounds import Rounds
from splitglm_partitioner.energy import first_joules, token_joules
from splitglm_partitioner.factors import ArmFactors
from splitglm_partitioner.grid import Grid
from splitglm_partitioner.layer_times import LayerTimes, Seconds
from splitglm_partitioner.pipeline import (
    growing_knots_of,
    knots_of,
    last_leaves,
    leaving,
    most_growing_knots,
    most_knots,
)
from splitglm_partitioner.profiles import LinkEstimate
from splitglm_partitioner.request import Situation
from splitglm_partitioner.slow_start import stalled_s

# Numbers that one array of a prefill may hold; more plans than that are priced in turns.
_MOST_CELLS = 1 << 20
# Growth that is a thousandth of what chunks cost needs no more knots than no growth.
_MOST_LEAD = 1 << 10


class Run(NamedTuple):
    """A way to run a prompt: in chunks of ``chunk_tokens``, ``cached_tokens`` being in the KV caches already."""

    chunk_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """Costs of every plan of a grid.

    Attributes:
        rates: ``[links, quantities]``.
        prefill: amounts of the prefill of each run.
        ttft_s: ``[runs, links, plans]``.
        per_token_s: ``[rounds, links, plans]``.
        first_j, token_j: joules of the prefill and of a further token, likewise; None unless asked for.
    """

    basis: Basis
    situation: Situation
    links: tuple[LinkEstimate | None, ...]
    runs: tuple[Run, ...]
    rounds: Rounds
    rates: Seconds
    prefill: Prefill
    ttft_s: Seconds
    per_token_s: Seconds
    first_j: Seconds | None
    token_j: Seconds | None

    def rows(self, run: int) -> int:
        """Prompt positions that have to be run."""
        return self.situation.request.prompt_tokens - self.runs[run].cached_tokens


def price(
    basis: Basis,
    situation: Situation,
    links: tuple[LinkEstimate | None, ...],
    runs: tuple[Run, ...],
    rounds: Rounds,
    *,
    energy: bool = False,
) -> Prices:
    """Price every plan of ``basis`` over each of ``links``, for each of ``runs`` and ``rounds``.

    Args:
        energy: price joules too, if the device's power is stated.
    """
    request, layout = situation.request, basis.layout
    context = request.mean_context_tokens
    rates = np.array([rates_of(layout, situation.device, situation.cloud, link, context) for link in links])
    prefill = Prefill(basis, situation, links, runs, rates)
    plans = len(basis.grid.s)
    most = max(1, _MOST_CELLS // (len(runs) * len(links) * prefill.knots))
    if plans <= most:
        ttft_s, busy_s = prefill.columns(0, plans)
    else:
        blocks = [prefill.columns(first, min(first + most, plans)) for first in range(0, plans, most)]
        ttft_s, busy_s = (np.concatenate(part, axis=-1) for part in zip(*blocks, strict=True))
    weights = rounds.amounts[:, None, :] * rates
    per_token_s = (weights.reshape(-1, weights.shape[-1]) @ basis.matrix).reshape(*weights.shape[:2], plans)
    if basis.alone is not None and rounds.alone:
        busy, sending = alone_s(basis, rounds, rates, situation)
        per_token_s[rounds.alone, :, basis.alone] = np.maximum(busy, sending)
    if situation.factors:
        first, further = _factors(basis.grid, situation.factors)
        ttft_s *= first
        busy_s = busy_s * first  # what lies between the two is the radio's: its seconds are calibrated as the whole is
        per_token_s *= further
    first_j = token_j = None
    power = situation.device.power
    if energy and power is not None:
        amounts = prefill.amounts_without_tail(), prefill.amounts_with_tail()
        first_j = first_joules(basis, power, rates[0], amounts, ttft_s - busy_s)
        token_j = token_joules(basis, power, rates[0], rounds, per_token_s)
    return Prices(basis, situation, links, runs, rounds, rates, prefill, ttft_s, per_token_s, first_j, token_j)


def _factors(grid: Grid, known: tuple[ArmFactors, ...]) -> tuple[Seconds, Seconds]:
    """What TTFT and seconds per token of every plan are multiplied by, each ``[plans]``."""
    first, further = np.ones((2, len(grid.s)))
    for factors in known:
        for arm, start, stop in grid.arms:
            if arm is factors.arm:
                first[start:stop], further[start:stop] = factors.ttft, factors.per_token
    return first, further


def alone_s(basis: Basis, rounds: Rounds, rates: Seconds, situation: Situation) -> tuple[Seconds, Seconds]:
    """Seconds per token of a cloud that goes on alone, and of sending and opening it; each ``[rounds.alone, links]``.

    Whichever is longer sets the pace. A drafter in the cloud is slowed down as the cloud is, not as the device.
    """
    seconds = rounds.alone_amounts[:, None, :] * (rates * basis.matrix[:, basis.alone])
    sums: Seconds = seconds @ _alone_sums(basis.layout)
    faster = 1.0 if situation.cloud is None else situation.cloud.slowdown / situation.device.slowdown
    return sums[..., 0] + sums[..., 2] * faster, sums[..., 1]


@lru_cache(maxsize=64)
def _alone_sums(layout: Layout) -> Seconds:
    """Columns that sum quantities: the cloud at work and its waits; sending and opening; drafting."""
    out = np.zeros((len(layout), 3))
    for place in (layout.back, layout.head, layout.of["queue"], layout.of["sweep"]):
        out[place, 0] = 1.0
    for place in (layout.down, layout.of["overhead"], slice(layout.of["open_record"].start, layout.tail.stop)):
        out[place, 1] = 1.0
    out[layout.of["draft"], 2] = 1.0
    return out


class Prefill:
    """The amounts of all runs, and the line of machines for some columns.

    Attributes:
        whole: amounts of all chunks of a run together, ``[runs, quantities]``.
        weights: seconds per quantity up to each knot, then before it, ``[runs, links, 2 * knots, quantities]``.
        shallow, deep: amounts that follow the last chunk, of plans without and with a tail, ``[runs, quantities]``.
        knots: jobs looked at.
    """

    def __init__(
        self,
        basis: Basis,
        situation: Situation,
        links: tuple[LinkEstimate | None, ...],
        runs: tuple[Run, ...],
        rates: Seconds,
    ) -> None:
        self.basis, self.links, self.rates = basis, links, rates
        prompt, layout = situation.request.prompt_tokens, basis.layout
        jobs = [-((cached - prompt) // chunk) for chunk, cached in runs]
        lasts = [prompt - cached - (n - 1) * chunk for n, (chunk, cached) in zip(jobs, runs, strict=True)]
        growing = _grows(basis.device) or (basis.cloud is not None and _grows(basis.cloud))
        fixed = [fixed_amounts(layout, run.cached_tokens == 0, prompt == 1) for run in runs]
        times = layout, basis.device, basis.cloud
        amounts = []
        for (chunk, cached), n, last, (first, context, _, _) in zip(runs, jobs, lasts, fixed, strict=True):
            ordinary, final = chunk_amounts(*times, min(chunk, prompt)), chunk_amounts(*times, last)
            if not growing:
                amounts.append([ordinary, final, first])
                continue
            ordinary = ordinary + chunk * cached * context
            final = final + last * (cached + (n - 1) * chunk) * context
            amounts.append([ordinary, final, first, chunk * chunk * context])
        self.amounts = np.array(amounts)
        if growing:
            sizes = [(n, _lead(basis.device, basis.cloud, run.chunk_tokens)) for n, run in zip(jobs, runs, strict=True)]
            self.knots = max(most_growing_knots(*size) for size in sizes)
            self.counts = np.array([growing_knots_of(*size, self.knots) for size in sizes])
        else:
            self.knots = max(most_knots(n) for n in jobs)
            self.counts = np.array([knots_of(n, self.knots) for n in jobs])
        sums = self.counts @ self.amounts
        self.whole: Seconds = sums[:, self.knots - 1]
        self.weights: Seconds = sums[:, None] * rates[:, None]
        self.shallow = np.array([after for _, _, after, _ in fixed])
        self.deep = np.array([after for _, _, _, after in fixed])
        self.waits = self._waits([run.cached_tokens for run in runs], prompt)
        self.queues_s = [0.0 if link is None else link.uplink_queue_s for link in links]

    def amounts_without_tail(self) -> Seconds:
        """Amounts of the whole prefill of plans without a tail: one row comes down; ``[runs, quantities]``."""
        layout = self.basis.layout
        out: Seconds = self.whole + self.shallow
        answer = slice(layout.down.start, layout.tail.stop)
        out[:, answer] = self.shallow[:, answer]
        return out

    def amounts_with_tail(self) -> Seconds:
        """Amounts of the whole prefill of plans with a tail, ``[runs, quantities]``."""
        out: Seconds = self.whole + self.deep
        return out

    def _waits(self, cached: list[int], prompt: int) -> Seconds | None:
        """Seconds that the first upload waits once it could begin, ``[runs, links, plans]``; None where none does."""
        if not any(link is not None and (link.window_bytes is not None or link.promotion_s) for link in self.links):
            return None
        grid = self.basis.grid
        kept: dict[int, list[list[float]]] = {}
        for tokens in cached:
            if tokens not in kept:
                sizes = [(prompt - tokens) * lane.up_row + (0 if tokens else lane.up_sink) for lane in grid.lanes]
                kept[tokens] = [[first_wait_s(size, link) for size in sizes] for link in self.links]
        out: Seconds = np.array([kept[tokens] for tokens in cached]).take(grid.lane, axis=-1)
        return out

    def columns(self, first: int, stop: int) -> tuple[Seconds, Seconds]:
        """Time to first token ``[runs, links, plans]``; when the first chunk leaves the front ``[runs, 1, plans]``."""
        basis, layout, k, links = self.basis, self.basis.layout, self.knots, len(self.links)
        matrix = basis.matrix[:, first:stop]
        front = self._work(layout.front, 1, matrix, slice(0, k))
        up = self._work(layout.up, links, matrix, slice(0, 2 * k))
        arrive = front - up[..., k:, :]
        self._first_upload(arrive[..., 0, :], first, stop)
        for i in range(1, k):
            np.maximum(arrive[..., i, :], arrive[..., i - 1, :], out=arrive[..., i, :])
        arrive += up[..., :k, :]
        after = self._after(self.shallow, matrix)
        cut = min(max(basis.grid.deep_start - first, 0), stop - first)
        back = self._work(layout.back, 1, matrix, slice(k - 1 if cut == stop - first else 0, 2 * k))
        ttft_s = last_leaves(arrive, back[..., -k - 1, :], back[..., -k:, :])
        ttft_s += after
        if cut < stop - first:
            line = arrive[..., cut:], front[..., cut:], back[..., cut:]
            ttft_s[..., cut:] = self._with_tail(*line, matrix[:, cut:])
        return ttft_s, front[..., 0, :]

    def _first_upload(self, ready: Seconds, first: int, stop: int) -> None:
        """Delay the first chunk's upload: behind the bytes of others, then by promotion and slow start."""
        online = self.basis.online[first:stop]
        for link, queue_s in enumerate(self.queues_s):
            if queue_s:
                np.maximum(ready[:, link], queue_s * online, out=ready[:, link])
        if self.waits is not None:
            ready += self.waits[..., first:stop]

    def _with_tail(self, arrive: Seconds, front: Seconds, back: Seconds, matrix: Seconds) -> Seconds:
        """Time to first token of plans with a tail.

        The tail waits for all fronts. Its clock runs late by the lag of link and cloud, so that a chunk arrives there
        as it leaves the downlink.
        """
        layout, k = self.basis.layout, self.knots
        arrive = leaving(arrive, back[..., :k, :], back[..., k:, :])
        down = self._work(layout.down, len(self.links), matrix, slice(0, 2 * k))
        arrive = leaving(arrive, down[..., :k, :], down[..., k:, :])
        tail = self._work(layout.tail, 1, matrix, slice(k - 1, 2 * k))
        lag = self.rates[:, layout.lag].sum(axis=-1)[:, None]
        ready = np.maximum((arrive - tail[..., 1:, :]).max(axis=-2), front[..., -1, :] - lag)
        out: Seconds = ready + tail[..., 0, :] + self._after(self.deep, matrix)
        return out

    def _work(self, place: slice, links: int, matrix: Seconds, rows: slice) -> Seconds:
        """A machine's seconds up to each knot and before it, over ``links``; ``[runs, links, knots, plans]``."""
        out: Seconds = self.weights[:, :links, rows, place] @ matrix[place]
        return out

    def _after(self, amounts: Seconds, matrix: Seconds) -> Seconds:
        """Seconds from the last machine to the first token, ``[runs, links, plans]``."""
        layout = self.basis.layout
        late = slice(layout.down.start, layout.head.stop)
        out: Seconds = (amounts[:, None, late] * self.rates[:, late]) @ matrix[late]
        return out


def first_wait_s(upload_bytes: int, link: LinkEstimate | None) -> float:
    """What promotion and slow start add to an upload after a rest (Cardwell, Savage, Anderson, INFOCOM 2000)."""
    if link is None or upload_bytes == 0:
        return 0.0
    if link.window_bytes is None:
        return link.promotion_s
    return link.promotion_s + stalled_s(upload_bytes, link.uplink_bytes_per_s, link.rtt_s, link.window_bytes)


@lru_cache(maxsize=1024)
def _lead(device: LayerTimes, cloud: LayerTimes | None, chunk_tokens: int) -> int:
    """Steps of growth that a chunk costs before any context, in the layer of either where that is least."""
    machines = (device,) if cloud is None else (device, cloud)
    return int(min([_MOST_LEAD, *(times.steps_of_growth(chunk_tokens) for times in machines)]))


def _grows(times: LayerTimes) -> bool:
    return bool(times.prefill_s_per_token_per_1k_context)
