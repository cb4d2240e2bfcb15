"""What an engine is made from, and what it then says of itself. Values only: both cross to worker processes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from splitglm_core.errors import InputError
from splitglm_core.plan import Codec, Precision
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_wire.limits import MAX_CONTEXT

_FACTORY: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def check_runner(name: str) -> None:
    """Raise InputError unless ``name`` can name a runner (see ``EngineSpec``)."""
    if name not in ("onnx", "torch") and not _FACTORY.fullmatch(name):
        raise InputError(f"runner {name!r} is neither onnx, torch nor package.module:factory")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Everything that decides how an engine computes.

    Attributes:
        model: name in the store or directory of a checkpoint.
        store: the store's directory; empty for the default one.
        layers: decoder layers to load; None loads all.
        text: False loads neither embedding nor head.
        runner: ``onnx``, ``torch``, or ``package.module:factory``, a callable that makes a runner of your own: it is
            called with ``(spec, checkpoint, layers, embedding=..., head=...)`` and returns an ``engine.runner.Runner``.
        precision: weight precision of the ONNX graphs.
        dtype: of the torch runner.
        threads: compute threads; 0 leaves it to the runtime.
        exact: a row's bits do not depend on who shares its batch (ONNX: a lone row costs about a tenth more).
        kv_budget_bytes: keys and values of all sessions of this engine.
        max_context: positions of one session; 0 means the model's own limit.
        max_wait_s: a step that nobody has begun to compute by then is refused; 0 means never.
        max_rows: rows aboard a sweep at once.
        prefill_rows_beside_decode: of these, prompt rows while somebody waits for a token.
        stride_layers: layers between two chances to board.
        profile: the layers' speed as an earlier start measured it (``EngineFacts.profile``); empty measures now.
    """

    model: str
    store: str = ""
    layers: LayerRange | None = None
    text: bool = True
    runner: str = "onnx"
    precision: Precision = Precision.INT8
    dtype: str = "float32"
    threads: int = 0
    exact: bool = True
    kv_budget_bytes: int = 4 << 30
    max_context: int = 0
    max_wait_s: float = 0.0
    max_rows: int = 512
    prefill_rows_beside_decode: int = 64
    stride_layers: int = 4
    profile: str = ""

    def __post_init__(self) -> None:
        check_runner(self.runner)
        for name in ("kv_budget_bytes", "max_rows", "prefill_rows_beside_decode", "stride_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be positive")
        if self.threads < 0 or not 0 <= self.max_context <= MAX_CONTEXT or self.max_wait_s < 0:
            raise InputError("threads, max_context and max_wait_s must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What a built engine can do.

    Attributes:
        runner: the runtime's name for itself.
        fingerprint: 32 bytes that name the model.
        layers: what it serves.
        precision: of its weights.
        max_context: positions that a session may have at most.
        profile: the partitioner's cloud profile as JSON text.
        batch_s: how long the largest batch is expected to take, by the profile.
    """

    runner: str
    shape: ModelShape
    fingerprint: bytes
    layers: LayerRange
    embedding: bool
    head: bool
    precision: Precision
    codecs: tuple[Codec, ...]
    max_context: int
    profile: str
    batch_s: float
