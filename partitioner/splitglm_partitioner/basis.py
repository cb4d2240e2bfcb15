"""What plans are made of: named quantities (rows) by plans (columns), so that prices are a few matrix products.

The seconds of any step of any plan are the sum over quantities of ``amount * rate * quantity``. The *quantity* depends
on the plan and the profiles alone and is kept between decisions: layers summed up to the cut, bytes per position, ...
The *rate* depends on the link, the load and the context now, the *amount* on the step (how many positions it has).
Every quantity belongs to one named term and to one place, and those of a place lie side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from splitglm_core.plan import Arm
from splitglm_partitioner.grid import Grid
from splitglm_partitioner.layer_times import LayerTimes, Seconds
from splitglm_partitioner.profiles import CloudProfile, CodecTime, DeviceProfile, LinkEstimate

# (quantity, term, rows; None for one per measured point of the machine), by place.
_PLACES: dict[str, tuple[tuple[str, str, int | None], ...]] = {
    "front": (
        ("front_points", "front_s", None),
        ("front_pass", "front_s", 1),  # growth with context of one pass, however many positions it has
        ("front_row", "front_s", 1),  # and of each further position
        ("embed", "front_s", 1),
        ("encode", "codec_s", 1),
        ("seal_record", "seal_s", 1),
        ("seal_row", "seal_s", 1),
        ("seal_sink", "seal_s", 1),
    ),
    "up": (("up_row", "uplink_s", 1), ("up_sink", "uplink_s", 1), ("overhead", "overhead_s", 1)),
    "back": (("back_points", "back_s", None), ("back_pass", "back_s", 1), ("back_row", "back_s", 1)),
    "down": (("down_row", "downlink_s", 1), ("down_sink", "downlink_s", 1)),
    "tail": (
        ("tail_points", "tail_s", None),
        ("tail_pass", "tail_s", 1),
        ("tail_row", "tail_s", 1),
        ("decode", "codec_s", 1),
        ("open_record", "seal_s", 1),
        ("open_row", "seal_s", 1),
        ("open_sink", "seal_s", 1),
    ),
    "lag": (("rtt", "rtt_s", 1), ("queue", "queue_s", 1), ("sweep", "sweep_s", 1)),
    "head": (("head_device", "head_s", 1), ("head_cloud", "head_s", 1)),
    "draft": (("draft", "draft_s", 1), ("shared", "front_s", 1)),
}


class Layout:
    """Where the rows of each place and of each quantity are. Attributes other than ``terms`` are slices."""

    front: slice
    up: slice
    back: slice
    down: slice
    tail: slice
    lag: slice
    head: slice
    draft: slice

    def __init__(self, device_points: int, cloud_points: int) -> None:
        self.of: dict[str, slice] = {}
        self.terms: list[str] = []
        for place, quantities in _PLACES.items():
            first = len(self.terms)
            for name, term, rows in quantities:
                count = rows if rows is not None else cloud_points if place == "back" else device_points
                self.of[name] = slice(len(self.terms), len(self.terms) + count)
                self.terms += [term] * count
            setattr(self, place, slice(first, len(self.terms)))
        self.back_growth = slice(self.back.stop - 2, self.back.stop)

    def __len__(self) -> int:
        return len(self.terms)


@lru_cache(maxsize=64)
def layout_of(device_points: int, cloud_points: int) -> Layout:
    return Layout(device_points, cloud_points)


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """The quantities of all plans of a grid, under one device's and one cloud's times.

    Attributes:
        matrix: ``[quantities, plans]``.
        online: 1.0 for plans that use the link, ``[plans]``.
        width: layers in the cloud, ``[plans]``.
        device, cloud: layer times; None without a cloud.
        alone: column of the plan under which the cloud decodes by itself, if it is there.
    """

    grid: Grid
    layout: Layout
    matrix: Seconds
    online: Seconds
    width: Seconds
    device: LayerTimes
    cloud: LayerTimes | None
    alone: int | None


def basis_of(grid: Grid, device: DeviceProfile, cloud: CloudProfile | None) -> Basis:
    """The basis of ``grid``; kept from decision to decision while the profiles' times stay."""
    if cloud is None:
        return _basis_of(grid, device.active.times, device.codecs, None, 0)
    return _basis_of(grid, device.active.times, device.codecs, cloud.times, cloud.served.start)


@lru_cache(maxsize=128)
def _basis_of(
    grid: Grid, device: LayerTimes, codecs: tuple[CodecTime, ...], cloud: LayerTimes | None, first_served: int
) -> Basis:
    cloud_points = np.zeros((1, grid.layers + 1))
    served = np.zeros(grid.layers + 1)
    if cloud is not None:
        cloud_points = _spread(cloud.points, first_served, grid.layers)
        served = _spread(np.arange(cloud.layers + 1, dtype=np.float64), first_served, grid.layers)
    layout = layout_of(len(device.points), len(cloud_points))
    matrix = np.zeros((len(layout), len(grid.s)))
    s, t, lanes = grid.s, grid.t, grid.lanes
    seconds = {entry.codec: entry.s_per_token for entry in codecs}
    online = np.array([lane.arm is not Arm.DEVICE for lane in lanes], dtype=np.float64).take(grid.lane)
    coded = np.array([0.0 if lane.codec is None else seconds.get(lane.codec, 0.0) for lane in lanes]).take(grid.lane)
    answered = np.array([lane.arm is Arm.USHAPE for lane in lanes], dtype=np.float64).take(grid.lane)
    in_cloud = np.array([lane.arm in (Arm.CLOUD, Arm.SPLIT) for lane in lanes], dtype=np.float64).take(grid.lane)
    carried = {
        "row": (np.array([lane.up_row for lane in lanes]), np.array([lane.down_row for lane in lanes])),
        "sink": (np.array([lane.up_sink for lane in lanes]), np.array([lane.down_sink for lane in lanes])),
    }
    rows: dict[str, Seconds] = {
        "front_points": device.points.take(s, axis=1),
        "embed": (s > 0).astype(np.float64),
        "encode": coded,
        "back_points": cloud_points.take(t, axis=1) - cloud_points.take(s, axis=1),
        "tail_points": (device.points[:, -1:] - device.points).take(t, axis=1),
        "decode": coded * answered,
        "head_device": 1.0 - in_cloud,
        "head_cloud": in_cloud,
    }
    rows |= dict.fromkeys(("front_pass", "front_row"), s.astype(np.float64))
    rows |= dict.fromkeys(("back_pass", "back_row"), served.take(t) - served.take(s))
    rows |= dict.fromkeys(("tail_pass", "tail_row"), (grid.layers - t).astype(np.float64))
    rows |= dict.fromkeys(("seal_record", "open_record", "overhead", "rtt", "queue", "sweep"), online)
    rows |= dict.fromkeys(("draft", "shared"), np.ones(len(s)))
    for kind, (up, down) in carried.items():
        rows |= dict.fromkeys((f"up_{kind}", f"seal_{kind}"), up.take(grid.lane).astype(np.float64))
        rows |= dict.fromkeys((f"down_{kind}", f"open_{kind}"), down.take(grid.lane).astype(np.float64))
    for name, where in layout.of.items():
        matrix[where] = rows[name]
    matrix.setflags(write=False)
    alone = next((start for arm, start, _ in grid.arms if arm is Arm.CLOUD), None)
    return Basis(grid, layout, matrix, online, (t - s).astype(np.float64), device, cloud, alone)


def _spread(sums: Seconds, first_served: int, layers: int) -> Seconds:
    """Sums over the served layers as sums over all: flat where none is served."""
    pad = [(0, 0)] * (sums.ndim - 1) + [(first_served, layers + 1 - first_served - sums.shape[-1])]
    return np.pad(sums, pad, mode="edge")


@lru_cache(maxsize=1024)
def chunk_amounts(layout: Layout, device: LayerTimes, cloud: LayerTimes | None, rows: int) -> Seconds:
    """Amounts of a pass over ``rows`` positions that go up and come down, from an empty cache; ``[quantities]``."""
    of, out = layout.of, np.zeros(len(layout))
    for name in ("embed", "encode", "seal_row", "up_row", "down_row", "decode", "open_row"):
        out[of[name]] = rows
    for name in ("seal_record", "open_record", "overhead"):
        out[of[name]] = 1.0
    out[of["front_points"]] = out[of["tail_points"]] = device.weights(rows)
    if cloud is not None:
        out[of["back_points"]] = cloud.weights(rows)
    out.setflags(write=False)
    return out


@lru_cache(maxsize=256)
def round_amounts(layout: Layout, device: LayerTimes, cloud: LayerTimes | None, most_rows: int) -> Seconds:
    """Amounts of decode steps of 1, 2, ..., ``most_rows`` positions at a context of 1; ``[most_rows, quantities]``."""
    of, out = layout.of, np.array([chunk_amounts(layout, device, cloud, 1 + extra) for extra in range(most_rows)])
    out[:, layout.lag] = 1.0
    further = np.arange(most_rows, dtype=np.float64)[:, None]
    out[:, layout.head] = further + 1.0
    for name in ("front", "back", "tail"):
        out[:, of[f"{name}_pass"]] = 1.0
        out[:, of[f"{name}_row"]] = further
    out.setflags(write=False)
    return out


@lru_cache(maxsize=256)
def fixed_amounts(layout: Layout, fresh: bool, sink_answered: bool) -> tuple[Seconds, Seconds, Seconds, Seconds]:
    """What a prefill has besides its chunks; each ``[quantities]``.

    Args:
        fresh: position 0 is sent. sink_answered: and it is the one that a plan without a tail gets an answer to.

    Returns:
        What comes with the first chunk; what growth comes with a unit of tokens times context; what follows the last
        chunk of a plan without a tail; and with a tail.
    """
    of = layout.of
    first, context, shallow, deep = np.zeros((4, len(layout)))
    for name in ("seal_sink", "up_sink", "down_sink", "open_sink"):
        first[of[name]] = fresh
    for name in ("front_row", "back_row", "tail_row"):
        context[of[name]] = 1.0
    for out in (shallow, deep):
        out[layout.lag] = out[layout.head] = 1.0
    for name in ("down_row", "decode", "open_record", "open_row"):
        shallow[of[name]] = 1.0
    for name in ("down_sink", "open_sink"):
        shallow[of[name]] = fresh and sink_answered
    return first, context, shallow, deep


def rates_of(
    layout: Layout, device: DeviceProfile, cloud: CloudProfile | None, link: LinkEstimate | None, context_tokens: float
) -> list[float]:
    """Seconds per unit of each quantity, in the layout's order.

    The growth of a pass is that at ``context_tokens``, the growth of a further position is per token of context.
    """
    profile, slow = device.active, device.slowdown
    times = profile.times
    per_pass, per_row = _growth(times, context_tokens)
    points = layout.of["front_points"].stop
    record, byte = device.seal_s_per_record or 0.0, device.seal_s_per_byte or 0.0
    out = [slow] * points + [per_pass * slow, per_row * slow, profile.embed_s * slow, slow, record, byte, byte]
    if cloud is None or link is None:
        out += [0.0] * (layout.lag.stop - len(out))
    else:
        up, down, busy = 1.0 / link.uplink_bytes_per_s, 1.0 / link.downlink_bytes_per_s, cloud.slowdown
        cloud_pass, cloud_row = _growth(cloud.times, context_tokens)
        out += [up, up, link.overhead_s]
        out += [busy] * (layout.back.stop - layout.back.start - 2) + [cloud_pass * busy, cloud_row * busy]
        out += [down, down]
        out += [slow] * points + [per_pass * slow, per_row * slow, slow, record, byte, byte]
        out += [link.rtt_s, cloud.queue_s, cloud.sweep_s]
    in_cloud = 0.0 if cloud is None else (cloud.head_s or 0.0) * cloud.slowdown
    return [*out, profile.head_s * slow, in_cloud, slow, slow]


def _growth(times: LayerTimes, context_tokens: float) -> tuple[float, float]:
    one_pass = times.decode_s_per_1k_context * (context_tokens - times.decode_context_tokens) / 1000
    return one_pass, (times.prefill_s_per_token_per_1k_context or 0.0) / 1000
