"""What ``ls`` and ``show`` tell about a model, as plain values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from splitglm_core.errors import SplitGlmError
from splitglm_core.plan import Precision
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export.manifest import GraphsManifest, part_names
from splitglm_glm.opening import open_checkpoint
from splitglm_glm.store import ModelStore, StoredModel


def inspected(store: ModelStore) -> tuple[StoredModel, ...]:
    """The models of the store, each opened as a request would open it, so that a damaged one says what is wrong."""
    return tuple(_inspect(model, store) for model in store.list())


def _inspect(model: StoredModel, store: ModelStore) -> StoredModel:
    try:
        open_checkpoint(model.name, store)
    except SplitGlmError as error:
        return replace(model, problem=model.problem or error.what)
    return model


def stored_facts(model: StoredModel) -> dict[str, Any]:
    """A stored model, whether intact or damaged."""
    source = model.source
    return {
        "name": model.name,
        "directory": str(model.directory),
        "source": None
        if source is None
        else {"kind": source.kind, "origin": source.origin, "revision": source.revision},
        "size_bytes": model.size_bytes,
        "graphs_bytes": model.graphs_bytes,
        "fingerprint": model.fingerprint or None,
        "problem": model.problem or None,
    }


def checkpoint_facts(checkpoint: Checkpoint, store: ModelStore) -> dict[str, Any]:
    """A checkpoint's shape, identity and built graphs."""
    config, shape = checkpoint.config, checkpoint.config.shape
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied_head else 2)
    return {
        "directory": str(checkpoint.directory),
        "fingerprint": checkpoint.fingerprint.hex(),
        "model_type": config.model_type,
        "parameters": shape.layers * shape.layer_parameters + embeddings,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "intermediate": shape.intermediate,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab": shape.vocab,
        "context": shape.max_positions,
        "tied_head": shape.tied_head,
        "kv_bytes_per_token": shape.kv_bytes_per_token(shape.layers),
        "graphs": {precision.value: _graphs(checkpoint, store, precision) for precision in Precision},
    }


def _graphs(checkpoint: Checkpoint, store: ModelStore, precision: Precision) -> dict[str, Any]:
    """Parts built and in all, and their bytes on disk."""
    names = part_names(checkpoint.config.shape.layers)
    manifest = GraphsManifest.read(store.graphs_dir(checkpoint.directory, precision))
    if manifest is None or not manifest.matches(checkpoint.fingerprint, precision):
        return {"parts": 0, "of": len(names), "bytes": 0}
    built = [name for name in names if name in manifest.parts]
    size = sum(file.bytes for name in built for file in manifest.parts[name].values())
    return {"parts": len(built), "of": len(names), "bytes": size}
