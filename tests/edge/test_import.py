"""What ``import splitglm_edge`` costs a device."""

from __future__ import annotations

import subprocess
import sys


def test_the_device_needs_neither_torch_nor_transformers_nor_grpc_tools() -> None:
    code = """
import sys
for name in ("torch", "transformers", "grpc_tools", "splitglm_cloud", "ray"):
    sys.modules[name] = None  # importing it now fails, as where it is not installed
import splitglm_edge
splitglm_edge.Agent, splitglm_edge.CloudAddress, splitglm_edge.Generation, splitglm_edge.Stats
print(sorted(name for name in ("jinja2.sandbox", "huggingface_hub", "onnx", "gguf") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("[]", "['jinja2.sandbox']")  # what builds graphs is loaded when one is built
