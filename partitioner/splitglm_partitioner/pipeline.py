"""Completion times of a line of machines: the permutation flow shop with unlimited buffers (Johnson 1954).

Job ``i`` leaves machine ``k`` when the machine has finished the job before it and the machine before has finished this
job. Unrolled, it leaves at the longest path: some job ``j <= i`` comes from the machine before without waiting here,
and the machine is busy with ``j .. i`` from then on::

    leave_k[i] = max over j <= i of (leave_{k-1}[j] + through_k[i] - before_k[j])

where ``through_k[i]`` is the work of machine ``k`` up to job ``i`` and ``before_k[j]`` that of the jobs before ``j``.

Within a run of equal jobs a path's length is linear in the job at which it changes machines, so the longest path
changes at an end of a run: only those jobs (knots) need be looked at, and the cost does not grow with their number.

Where jobs grow by equal steps, as chunks do with the context before them, a path's length is quadratic. If it is convex
the ends decide as before; if the later machine grows by ``q`` more per job than the earlier one it is concave, and the
best job may lie inside. Further knots, between which it is then taken as linear, bound what that misses: at most
``q * floor(h * h / 4) / 2`` between knots ``h`` jobs apart. A path that is best inside, after the knot ``k``, is itself
at least ``q / 2 * ((n - 1) * (n - 2) + k * (k + 3))`` long for ``n`` jobs, because the earlier machine then takes as
long for each job up to there as the later one does at that job, and the last job may be of any length. If the first
job takes as long as ``lead`` steps of growth, on whichever machine grows, ``q * lead * (n - 1)`` come on top. Knots may
therefore lie further apart the later they are, and twelve suffice for any number of jobs. Along a line of machines
the ``q`` of successive changes add up to at most the growth of the last one, and the bound stays. Times are never above
the exact ones and less than ``TOLERANCE`` below.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]
TOLERANCE: Final = 0.005
"""Of completion times of growing jobs, relative; those of equal jobs are exact."""


def leaving(arrive: Seconds, through: Seconds, before: Seconds) -> Seconds:
    """Times at which the knot jobs leave a machine.

    Args:
        arrive: ``[..., knots, plans]``, when they left the machine before.
        through, before: likewise; work of this machine up to each knot job, and without it.
    """
    out = arrive - before
    for i in range(1, out.shape[-2]):
        np.maximum(out[..., i, :], out[..., i - 1, :], out=out[..., i, :])
    out += through
    return out


def last_leaves(arrive: Seconds, through_last: Seconds, before: Seconds) -> Seconds:
    """``leaving`` of the last job alone, ``[..., plans]``; ``through_last`` is the machine's whole work."""
    out: Seconds = (arrive - before).max(axis=-2)
    out += through_last
    return out


@lru_cache(maxsize=4096)
def knots_of(jobs: int, width: int) -> Seconds:
    """Knots of a prompt in ``jobs`` chunks that cost the same but for the first, which may carry more, and the last.

    Returns:
        ``[2 * width, 3]``: for each of ``width`` knots (the last one repeats when there are fewer), how many ordinary
        chunks, last chunks and first chunks there are up to and including the knot job; then the same without it.
    """
    knots = sorted({0, min(1, jobs - 1), max(0, jobs - 2), jobs - 1})
    return _counts(np.array(knots + [jobs - 1] * (width - len(knots))), jobs)


def most_knots(jobs: int) -> int:
    """Knots that ``jobs`` chunks have."""
    return min(4, jobs)


@lru_cache(maxsize=4096)
def growing_knots_of(jobs: int, lead: int, width: int) -> Seconds:
    """As ``knots_of`` where each ordinary chunk costs one step more than the one before.

    Args:
        lead: steps that the first ordinary chunk costs at least, on every machine.
        width: ``most_growing_knots(jobs, lead)`` or more.

    Returns:
        ``[2 * width, 4]``: the fourth column counts the steps in all ordinary chunks: 0 + 1 + 2 + ...
    """
    knots = _growing_knots(jobs, lead)
    counts = _counts(np.array(knots + (jobs - 1,) * (width - len(knots))), jobs)
    out = np.column_stack([counts, counts[:, 0] * (counts[:, 0] - 1) / 2])
    out.setflags(write=False)
    return out


def most_growing_knots(jobs: int, lead: int) -> int:
    """Knots that ``jobs`` growing chunks have: at most 12."""
    return len(_growing_knots(jobs, lead))


@lru_cache(maxsize=4096)
def _growing_knots(jobs: int, lead: int) -> tuple[int, ...]:
    knots, at = {0, max(0, jobs - 2), jobs - 1}, 1
    while at < jobs - 2:
        knots.add(at)
        room = int(TOLERANCE * ((jobs - 1) * (jobs - 2 + 2 * lead) + at * (at + 3)))
        at += math.isqrt(4 * room + 3)  # the longest h with floor(h * h / 4) <= room; at least 1
    return tuple(sorted(knots))


def _counts(index: NDArray[np.intp], jobs: int) -> Seconds:
    through = np.column_stack([np.minimum(index + 1, jobs - 1), index == jobs - 1, np.ones(len(index))])
    before = np.column_stack([index, np.zeros(len(index)), index > 0])
    out = np.concatenate([through, before]).astype(np.float64)
    out.setflags(write=False)
    return out
