"""A GLM checkpoint on disk, read one layer at a time under names that do not depend on who published it.

Opening reads the config and the headers and checks every name and shape; no weight is read before it is asked for, so
memory is a layer, not the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from splitglm_core.errors import InputError, ModelInvalid
from splitglm_glm.config import CONFIG_FILE, GlmConfig, load_config
from splitglm_glm.fingerprint import load_or_build
from splitglm_glm.naming import Part, TensorMap, judge_extras, tensor_map
from splitglm_glm.tensor_files import (
    StoredTensor,
    contained_file,
    find_tensor_files,
    read_headers,
    read_rows,
    read_tensor,
)

_MAX_NAMES_SHOWN: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerWeights:
    """One decoder layer, all arrays float32 and owned by the caller. Matrices are [outputs, inputs].

    h heads, kv key/value heads, d head dimension, H hidden, I intermediate.
    """

    qkv: np.ndarray  # [(h + 2 kv) d, H]: rows of Q, then K, then V
    qkv_bias: np.ndarray | None  # [(h + 2 kv) d]
    o: np.ndarray  # [H, h d]
    gate_up: np.ndarray  # [2 I, H]: rows of gate, then up
    down: np.ndarray  # [H, I]
    input_norm: np.ndarray  # [H], before attention
    post_attention_norm: np.ndarray  # [H], before the MLP
    post_self_attn_norm: np.ndarray | None  # [H], glm4: on the output of attention
    post_mlp_norm: np.ndarray | None  # [H], glm4: on the output of the MLP


class Checkpoint:
    """A validated checkpoint directory; make one with ``Checkpoint.open``."""

    def __init__(self, directory: Path, config: GlmConfig, tensors: Mapping[str, StoredTensor]) -> None:
        """Check that ``tensors`` are exactly what ``config`` asks for.

        Raises:
            ModelInvalid: a tensor is missing, misshapen, or of another architecture.
        """
        self.directory = directory
        self.config = config
        self._tensors = tensors
        self._map: TensorMap = tensor_map(config)
        self._fingerprint: bytes | None = None
        parts = {part.name: part for part in self._map.parts()}
        self.ignored_tensors: tuple[str, ...] = judge_extras(tensors.keys() - parts.keys(), config)
        """Tensors that are present but not part of the model (rotary tables, a copy of a tied head)."""
        missing = [name for name in parts if name not in tensors]
        if missing:
            shown = ", ".join(missing[:_MAX_NAMES_SHOWN]) + (", ..." if len(missing) > _MAX_NAMES_SHOWN else "")
            raise ModelInvalid(
                f"{directory} lacks {len(missing)} tensors of a {config.model_type} model: {shown}",
                "fetch the checkpoint again, or check that config.json belongs to it",
            )
        for part in parts.values():
            _check_shape(part, tensors[part.name])

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Open and validate the checkpoint in ``directory``.

        Raises:
            ModelNotFound: no such directory, or no config in it.
            ModelInvalid: anything in it that is unsafe, damaged, incomplete or of an unknown kind.
        """
        directory = Path(directory)
        find_tensor_files(directory)  # before the config, so that a folder of pickles is named as what it is
        config_path = directory / CONFIG_FILE
        config = load_config(contained_file(directory, CONFIG_FILE) if config_path.exists() else config_path)
        return cls(directory, config, read_headers(directory))

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that name this model: SHA-256 over its manifest. Hashes every file on first use, then cached."""
        if self._fingerprint is None:
            self._fingerprint = load_or_build(self.directory).fingerprint
        return self._fingerprint

    def tensor(self, name: str) -> np.ndarray:
        """The tensor called ``name`` on disk, float32.

        Raises:
            InputError: no such tensor.
            ModelInvalid: damaged data or a non-finite value.
        """
        stored = self._tensors.get(name)
        if stored is None:
            raise InputError(f"the checkpoint has no tensor {name[:200]!r}", "use a name from the safetensors header")
        return read_tensor(stored, name)

    def layer(self, index: int) -> LayerWeights:
        """Weights of decoder layer ``index``; reads that layer's tensors only.

        Raises:
            InputError: no such layer.
            ModelInvalid: damaged data or a non-finite value.
        """
        if not 0 <= index < self.config.shape.layers:
            raise InputError(f"layer {index} is outside [0, {self.config.shape.layers})")
        fields = {field: self._stack(parts) for field, parts in self._map.layers[index].items()}
        optional = {field: fields.pop(field, None) for field in ("qkv_bias", "post_self_attn_norm", "post_mlp_norm")}
        return LayerWeights(
            qkv=fields["qkv"],
            o=fields["o"],
            gate_up=fields["gate_up"],
            down=fields["down"],
            input_norm=fields["input_norm"],
            post_attention_norm=fields["post_attention_norm"],
            **optional,
        )

    def embedding(self) -> np.ndarray:
        """Token embeddings [V, H], float32."""
        return self.tensor(self._map.embedding.name)

    def final_norm(self) -> np.ndarray:
        """Weight of the norm before the head [H], float32."""
        return self.tensor(self._map.final_norm.name)

    def head(self) -> np.ndarray:
        """LM head [V, H], float32: the embedding itself when the config ties them."""
        return self.embedding() if self._map.head is None else self.tensor(self._map.head.name)

    def embedding_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``[start, stop)`` of the token embeddings, float32: for big vocabularies in little memory."""
        return self._rows(self._map.embedding, start, stop)

    def head_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``[start, stop)`` of the LM head, float32."""
        return self._rows(self._map.head or self._map.embedding, start, stop)

    def _rows(self, part: Part, start: int, stop: int) -> np.ndarray:
        return read_rows(self._tensors[part.name], part.name, start, stop)

    def _stack(self, parts: tuple[Part, ...]) -> np.ndarray:
        arrays = [self.tensor(part.name) for part in parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _check_shape(part: Part, stored: StoredTensor) -> None:
    if stored.shape != part.shape:
        raise ModelInvalid(
            f"tensor {part.name!r} of {stored.path.name} is {list(stored.shape)} where config.json asks for "
            f"{list(part.shape)}",
            "check that config.json and the weights are of the same model",
        )
