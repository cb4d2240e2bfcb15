"""Writes float32 tensors to one safetensors file in blocks of rows, so that memory is a block and not a model.

Format: https://github.com/huggingface/safetensors. The package of that name wants every tensor in memory at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from splitglm_core.errors import InternalError
from splitglm_glm.progress import Progress, silent

_ALIGNMENT: Final = 8
_FLOAT_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to be written: its name, shape, and blocks of float32 whose rows in order make it up."""

    name: str
    shape: tuple[int, ...]
    blocks: Iterable[np.ndarray]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * _FLOAT_BYTES


def write_tensors(path: Path, plans: Iterable[TensorPlan], progress: Progress = silent) -> None:
    """Write ``path``, in the order of ``plans``; the same plans give the same bytes.

    Raises:
        InternalError: blocks that do not add up to the planned shape.
        OSError: the disk.
    """
    plans = tuple(plans)
    total = sum(plan.size_bytes for plan in plans)
    done = 0
    with path.open("wb") as file:
        file.write(_header(plans))
        for plan in plans:
            written = 0
            for block in _checked(plan):
                file.write(block.tobytes())
                written += block.nbytes
                progress("writing weights", done + written, total)
            if written != plan.size_bytes:
                raise InternalError(f"{plan.name} has {written} bytes where {plan.size_bytes} were planned")
            done += written


def _checked(plan: TensorPlan) -> Iterator[np.ndarray]:
    for block in plan.blocks:
        if block.dtype != np.float32 or block.shape[1:] != plan.shape[1:]:
            raise InternalError(f"{plan.name} got a block {block.dtype} {block.shape} where {plan.shape} was planned")
        yield block.astype("<f4", copy=False)


def _header(plans: tuple[TensorPlan, ...]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # what transformers asks for
    offset = 0
    for plan in plans:
        entries[plan.name] = {
            "dtype": "F32",
            "shape": list(plan.shape),
            "data_offsets": [offset, offset + plan.size_bytes],
        }
        offset += plan.size_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
