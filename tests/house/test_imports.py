"""Importing the device's half costs neither torch nor transformers, even where they are installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

# grpc itself imports the empty package grpc_tools where it is installed; the compiler inside it is what counts.
HEAVY = ("torch", "transformers", "ray", "grpc_tools.protoc", "simpy", "sympy")


def loaded_by(module: str) -> set[str]:
    """Names in ``sys.modules`` of a fresh interpreter after importing ``module``."""
    program = f"import sys, json, {module}; json.dump(sorted(sys.modules), sys.stdout)"
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


@pytest.mark.parametrize(
    "module",
    ["splitglm_core", "splitglm_wire", "splitglm_security", "splitglm_partitioner", "splitglm_glm", "splitglm_edge"],
)
def test_the_devices_rooms_load_nothing_heavy(module: str) -> None:
    for name in ("torch", "transformers", "grpc_tools.protoc"):
        assert importlib.util.find_spec(name) is not None, "this proves something only where it could be loaded"
    assert loaded_by(module).isdisjoint(HEAVY)


def test_importing_the_glm_package_imports_nothing_of_it() -> None:
    """Its ``__init__`` is empty, or every user of its tokenizer would load the model."""
    assert not {name for name in loaded_by("splitglm_glm") if name in {"torch", "onnx", "onnxruntime", "safetensors"}}
