"""Shapes of the models that the presets time, from their public configurations."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from splitglm_core.errors import InputError
from splitglm_core.shapes import ModelShape

MODELS: Final[Mapping[str, ModelShape]] = MappingProxyType(
    {
        "smollm2-135m": ModelShape(  # HuggingFaceTB/SmolLM2-135M-Instruct, run as a GLM
            layers=30,
            hidden=576,
            intermediate=1536,
            heads=9,
            kv_heads=3,
            head_dim=64,
            vocab=49152,
            max_positions=8192,
            tied_head=True,
        ),
        "glm-edge-1.5b": ModelShape(  # THUDM/glm-edge-1.5b-chat
            layers=28,
            hidden=2048,
            intermediate=6144,
            heads=16,
            kv_heads=4,
            head_dim=128,
            vocab=59264,
            max_positions=8192,
            tied_head=True,
        ),
        "glm-4-9b": ModelShape(  # THUDM/glm-4-9b-chat-hf
            layers=40,
            hidden=4096,
            intermediate=13696,
            heads=32,
            kv_heads=2,
            head_dim=128,
            vocab=151552,
            max_positions=131072,
            tied_head=False,
        ),
    }
)


def model_shape(name: str) -> ModelShape:
    """The shape of that name; InputError when there is none."""
    if name not in MODELS:
        raise InputError(f"there is no model {name!r} among the presets", f"use one of {', '.join(MODELS)}")
    return MODELS[name]
