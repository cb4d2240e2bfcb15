"""Joules of the device: a power while it computes, one while it uses the link, and some for each byte.

The radio's part is the linear model of Huang et al. (MobiSys 2012).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from splitglm_partitioner.basis import Basis, Layout
from splitglm_partitioner.decoding_rounds import Rounds
from splitglm_partitioner.layer_times import Seconds
from splitglm_partitioner.power import PowerProfile


def first_joules(
    basis: Basis, power: PowerProfile, rates: Seconds, amounts: tuple[Seconds, Seconds], linked_s: Seconds
) -> Seconds:
    """Joules until the first token, ``[runs, links, plans]``.

    Args:
        rates: seconds per unit of each quantity, ``[quantities]``.
        amounts: of the prefill, without a tail and with one, each ``[runs, quantities]``.
        linked_s: from the first upload to the first token, ``[runs, links, plans]``.
    """
    unit, deep = joule_rates(basis.layout, rates, power), basis.grid.deep_start
    out = (amounts[0] * unit) @ basis.matrix
    if deep < out.shape[1]:
        out[:, deep:] = (amounts[1] * unit) @ basis.matrix[:, deep:]
    joules: Seconds = out[:, None, :] + linked_s * (power.radio_w * basis.online)
    return joules


def token_joules(basis: Basis, power: PowerProfile, rates: Seconds, rounds: Rounds, per_token_s: Seconds) -> Seconds:
    """Joules of a further token, ``[rounds, links, plans]``."""
    layout = basis.layout
    amounts = rounds.amounts * joule_rates(layout, rates, power)
    out = amounts @ basis.matrix
    if basis.alone is not None and rounds.alone:
        # The device only opens what comes down.
        answer = slice(layout.down.start, layout.tail.stop)
        out[rounds.alone, basis.alone] = amounts[rounds.alone, answer] @ basis.matrix[answer, basis.alone]
    joules: Seconds = out[:, None, :] + per_token_s * (power.radio_w * basis.online)
    return joules


def joule_rates(layout: Layout, rates: Seconds, power: PowerProfile) -> Seconds:
    """Joules per unit of each quantity, the radio's base power not included; ``[quantities]``."""
    computing, up, down = _kinds(layout)
    out: Seconds = rates * (power.compute_w * computing)
    out += power.uplink_j_per_byte * up + power.downlink_j_per_byte * down
    return out


@lru_cache(maxsize=64)
def _kinds(layout: Layout) -> tuple[Seconds, Seconds, Seconds]:
    """1.0 where the device computes, where bytes go up and where they come down; each ``[quantities]``."""
    computing, up, down = np.zeros((3, len(layout)))
    for place in (layout.front, layout.tail, layout.of["head_device"], layout.draft):
        computing[place] = 1.0
    up[layout.of["up_row"]] = up[layout.of["up_sink"]] = 1.0
    down[layout.down] = 1.0
    return computing, up, down
