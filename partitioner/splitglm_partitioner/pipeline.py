"""Completion times of a line of machines: the permutation flow shop with unlimited buffers (Johnson 1954).

Job ``i`` leaves machine ``k`` when the machine has finished the job before it and the machine before has finished this
job. Unrolled, it leaves at the longest path: some job ``j <= i`` comes from the machine before without waiting here,
and the machine is busy with ``j .. i`` from then on::

    leave_k[i] = max over j <= i of (leave_{k-1}[j] + through_k[i] - before_k[j])

where ``through_k[i]`` is the work of machine ``k`` up to job ``i`` and ``before_k[j]`` that of the jobs before ``j``.

Within a run of equal jobs a path's length is linear in the job at which it changes machines, so the longest path
changes at an end of a run: only those jobs (knots) need be looked at, and the cost does not grow with their number.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


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


def knots_with_context(jobs: int, width: int, chunk: int, last: int, cached: int) -> Seconds:
    """As ``knots_of``, where each chunk costs more than the one before: every job is a knot.

    Returns:
        ``[2 * width, 4]``: the fourth column sums tokens times context over the chunks.
    """
    index = np.minimum(np.arange(width), jobs - 1)
    counts = _counts(index, jobs)
    done = counts[:, 0]
    context = chunk * (done * cached + chunk * done * (done - 1) / 2)
    context += counts[:, 1] * last * (cached + (jobs - 1) * chunk)
    return np.column_stack([counts, context])


def _counts(index: NDArray[np.intp], jobs: int) -> Seconds:
    through = np.column_stack([np.minimum(index + 1, jobs - 1), index == jobs - 1, np.ones(len(index))])
    before = np.column_stack([index, np.zeros(len(index)), index > 0])
    out = np.concatenate([through, before]).astype(np.float64)
    out.setflags(write=False)
    return out
