"""Embedding, decoder layers and head as ONNX Runtime sessions, shared by every request of a process.

One session per layer: a cut at any layer, on either side, uses the same sessions, so no weight is held twice.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InputError, InternalError
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export.manifest import EMBEDDING, HEAD, GraphsManifest, layer_part
from splitglm_glm.kv import KvCache
from splitglm_glm.onnx_runtime import ort
from splitglm_glm.rotary import RotaryTable
from splitglm_glm.runtime import RuntimeOptions, SessionFactory

Float32 = NDArray[np.float32]


class LayerStack:
    """The layers of one model at one precision. Parts are loaded when first needed or preloaded.

    Methods may be called from several threads at once, as long as no two use the same cache.
    """

    def __init__(
        self, checkpoint: Checkpoint, graphs: Path, precision: Precision, *, options: RuntimeOptions | None = None
    ) -> None:
        """Open the graphs in ``graphs``; nothing is loaded yet.

        Raises:
            ModelInvalid: the directory holds no graphs of this checkpoint, precision and builder version.
        """
        self.config = checkpoint.config
        self.precision = precision
        self.options = options or RuntimeOptions()
        self._graphs = graphs
        self._manifest = GraphsManifest.open(graphs, checkpoint.fingerprint, precision)
        self.factory = SessionFactory(self.options)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._load_lock = threading.Lock()
        self._rotary: RotaryTable | None = None

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers in use, or those to be tried when nothing is loaded yet."""
        used = {session.get_providers()[0] for session in self._sessions.values()}
        return tuple(sorted(used)) if used else self.factory.candidates()

    @property
    def rejected_providers(self) -> dict[str, str]:
        """Providers that could not be used and why."""
        return dict(self.factory.rejected)

    def preload(self, layers: LayerRange, *, embedding: bool, head: bool) -> None:
        """Load these parts now instead of at the first request.

        Raises:
            ModelInvalid: a part is missing, truncated or changed; the hint says how to rebuild it.
        """
        for part in self._parts(layers, embedding=embedding, head=head):
            self._session(part)

    def unload(self, layers: LayerRange, *, embedding: bool = False, head: bool = False) -> None:
        """Drop these parts; caches whose bindings use them keep them alive until they are closed."""
        with self._load_lock:
            for part in self._parts(layers, embedding=embedding, head=head):
                self._sessions.pop(part, None)

    def graph_file(self, part: str) -> Path:
        """The verified ``.onnx`` file of ``part``, for whoever opens sessions of another kind over it.

        Raises:
            ModelInvalid: the part or its data is missing, truncated or changed.
        """
        return self._manifest.require(self._graphs, part)

    def new_cache(self, layers: LayerRange, capacity: int) -> KvCache:
        """An empty cache for ``capacity`` positions of ``layers``; memory is committed as positions are used.

        Raises:
            InputError: more positions than the model was made for.
        """
        shape = self.config.shape
        if layers.stop > shape.layers:
            raise InternalError(f"layers {layers} are not in a model of {shape.layers}")
        if not 1 <= capacity <= shape.max_positions:
            raise InputError(f"a cache of {capacity} positions is outside [1, {shape.max_positions}]")
        return KvCache(layers, capacity, self.config, self._rotary_for(capacity))

    def embed(self, ids: NDArray[np.int64]) -> Float32:
        """Embedding rows ``[n, hidden]`` of token ids ``[n]``.

        Raises:
            InputError: an id outside the vocabulary.
        """
        ids = np.ascontiguousarray(ids, np.int64)
        if ids.ndim != 1:
            raise InternalError(f"token ids must be one-dimensional, not of shape {ids.shape}")
        if ids.size == 0:
            return np.zeros((0, self.config.shape.hidden), np.float32)
        if ids.min() < 0 or ids.max() >= self.config.shape.vocab:
            raise InputError(f"a token id is outside the vocabulary of {self.config.shape.vocab}")
        rows: Float32 = self._session(EMBEDDING).run(None, {"ids": ids[None]})[0][0]
        return rows

    def forward(self, hidden: Float32, cache: KvCache, layers: LayerRange) -> Float32:
        """Run ``hidden [n, hidden]`` through ``layers`` at the next positions of their cache; returns ``[n, hidden]``.

        Any sub-range of the cache's layers may run; each layer counts its own positions.

        Raises:
            PromptTooLong: the cache is too short; it is unchanged.
        """
        self._check_hidden(hidden)
        return cache.run(hidden, layers, lambda layer: self._session(layer_part(layer)))

    def logits(self, hidden: Float32) -> Float32:
        """Final norm and LM head: ``[n, hidden]`` to ``[n, vocab]``."""
        self._check_hidden(hidden)
        if hidden.shape[0] == 0:
            return np.zeros((0, self.config.shape.vocab), np.float32)
        rows = np.ascontiguousarray(hidden[None], np.float32)
        logits: Float32 = self._session(HEAD).run(None, {"hidden_in": rows})[0][0]
        return logits

    def resident_weight_bytes(self) -> int:
        """Bytes of the loaded weights. The embedding counts nothing: it is mapped, only used rows become resident."""
        return sum(self._manifest.weight_bytes(part) for part in tuple(self._sessions) if part != EMBEDDING)

    def loaded_parts(self) -> tuple[str, ...]:
        """Names of the loaded parts, sorted."""
        return tuple(sorted(self._sessions))

    def _parts(self, layers: LayerRange, *, embedding: bool, head: bool) -> list[str]:
        if layers.stop > self.config.shape.layers:
            raise InternalError(f"layers {layers} are not in a model of {self.config.shape.layers}")
        return [*([EMBEDDING] if embedding else []), *map(layer_part, layers), *([HEAD] if head else [])]

    def _session(self, part: str) -> ort.InferenceSession:
        found = self._sessions.get(part)
        if found is not None:
            return found
        with self._load_lock:
            if part not in self._sessions:
                self._sessions[part] = self.factory.open(self.graph_file(part))
            return self._sessions[part]

    def _rotary_for(self, capacity: int) -> RotaryTable:
        """The shared table, rebuilt in powers of two when a longer cache comes; older caches keep theirs."""
        with self._load_lock:
            if self._rotary is None or self._rotary.positions < capacity:
                positions = min(self.config.shape.max_positions, max(1024, 1 << (capacity - 1).bit_length()))
                self._rotary = RotaryTable.build(positions, self.config)
            return self._rotary

    def _check_hidden(self, hidden: Float32) -> None:
        if hidden.ndim != 2 or hidden.shape[1] != self.config.shape.hidden:
            raise InternalError(f"a hidden state of shape {hidden.shape} does not fit width {self.config.shape.hidden}")
