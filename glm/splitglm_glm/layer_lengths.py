"""How many positions each layer of a cache holds: a pass through the layers may be cut, so they advance one by one."""

from __future__ import annotations

from collections.abc import Mapping

from splitglm_core.errors import InternalError
from splitglm_core.ranges import LayerRange


def common_length(lengths: Mapping[int, int], layers: LayerRange) -> int:
    """Positions held by each of ``layers``; 0 for no layers.

    Args:
        lengths: of every layer of the cache.

    Raises:
        InternalError: a layer outside the cache, or layers that have run a different number of positions.
    """
    try:
        held = {lengths[layer] for layer in layers}
    except KeyError as error:
        raise InternalError(f"layer {error} is not in a cache of layers {sorted(lengths)}") from None
    if len(held) > 1:
        raise InternalError(f"layers {layers} have run {sorted(held)} positions")
    return held.pop() if held else 0
