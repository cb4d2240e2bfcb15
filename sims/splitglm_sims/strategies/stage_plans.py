"""Dynamic programmes that lay consecutive layers on a line of stages, for least latency or least bottleneck.

Source: Zhang et al., *EdgeShard: Efficient LLM Inference via Collaborative Edge Computing*, arXiv 2405.14371: the
recursions over (layer, machine). Here the machines stand in a line of stages (device, cloud, device again), each of
which takes consecutive layers after those of the stage before: what a plan of this product can express. A layer that
may not run on a stage (memory, first layer at the source, tail) has an infinite time there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """Costs, in seconds.

    Attributes:
        compute: ``[layers, stages]``.
        entry: before the first layer, when it runs on that stage, ``[stages]``; the input starts at stage 0.
        move: from each stage to the next, ``[stages - 1]``.
        leave: after the last layer, when it ran on that stage: results back at the source, head, ``[stages]``.
    """

    compute: Matrix
    entry: Matrix
    move: Matrix
    leave: Matrix


def least_latency(line: Line) -> tuple[float, tuple[int, ...]]:
    """Least sum of seconds and the stage of each layer; infinite, with no stages, when nothing is possible.

    ``best[k]`` after layer ``i`` is ``min(best[k], best[k - 1] + move[k - 1]) + compute[i, k]``.
    """
    stages = len(line.entry)
    rows, entry = line.compute.tolist(), line.entry.tolist()
    best = [entry[k] + rows[0][k] for k in range(stages)]
    moved: list[list[bool]] = []
    for row in rows[1:]:
        came = [False] * stages
        for k in range(stages - 1, -1, -1):
            arriving = best[k - 1] + float(line.move[k - 1]) if k else math.inf
            came[k] = arriving < best[k]
            best[k] = min(best[k], arriving) + row[k]
        moved.append(came)
    ends = [best[k] + float(line.leave[k]) for k in range(stages)]
    last = ends.index(min(ends))
    if math.isinf(ends[last]):
        return math.inf, ()
    out = [last]
    for came in reversed(moved):
        out.append(out[-1] - 1 if came[out[-1]] else out[-1])
    return ends[last], tuple(reversed(out))


def least_bottleneck(line: Line) -> tuple[float, tuple[int, ...]]:
    """Least time of the slowest stage or link, and the stage of each layer, when requests follow each other closely.

    ``entry``, ``move`` and ``leave`` are links of their own, except that ``leave`` of the first stage is its own work
    (a head on the device). ``best[i, k]`` is the least bottleneck of the first ``i`` layers ending on stage ``k``: the
    least over ``m < i`` of ``max(best[m, k - 1], move[k - 1], seconds of layers [m, i) on stage k)``.
    """
    layers, stages = line.compute.shape
    sums = np.zeros((stages, layers + 1))
    blocked = np.zeros((stages, layers + 1), dtype=np.intp)
    finite = np.isfinite(line.compute)
    sums[:, 1:] = np.where(finite, line.compute, 0.0).cumsum(axis=0).T
    blocked[:, 1:] = (~finite).cumsum(axis=0).T
    best = np.full((layers + 1, stages), math.inf)
    start = np.zeros((layers + 1, stages), dtype=np.intp)
    for k in range(stages):
        # What stands before stage k: nothing yet (its input arrives by ``entry``), or the stages before it.
        before = np.full(layers + 1, math.inf) if k == 0 else np.maximum(best[:, k - 1], line.move[k - 1])
        before[0] = line.entry[k]
        for i in range(1, layers + 1):
            load = np.where(blocked[k, :i] == blocked[k, i], sums[k, i] - sums[k, :i], math.inf)
            value = np.maximum(before[:i], load)
            start[i, k] = value.argmin()
            best[i, k] = value[start[i, k]]
    ends = np.maximum(best[layers], line.leave)
    ends[0] = best[layers, 0] + line.leave[0]
    last = int(ends.argmin())
    if math.isinf(ends[last]):
        return math.inf, ()
    out: list[int] = []
    i, k = layers, last
    while i > 0:
        m = int(start[i, k])
        out = [k] * (i - m) + out
        i, k = m, k - 1
    return float(ends[last]), tuple(out)
