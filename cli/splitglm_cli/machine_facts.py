"""What ``doctor`` tells about this machine."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from splitglm_cli.serving_facts import serving_facts
from splitglm_core.version import VERSION

_PACKAGES: Final = ("numpy", "onnxruntime", "onnx", "grpcio", "cryptography", "tokenizers", "typer", "torch")
# Instruction sets that decide how fast the kernels of ONNX Runtime are.
_FEATURES: Final = (
    *("avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
_CPU_FILE: Final = Path("/proc/cpuinfo")


def machine_facts() -> dict[str, Any]:
    """Plain values for JSON; nothing here identifies a person or holds a secret."""
    import psutil

    from splitglm_glm.huge_pages import huge_pages_status
    from splitglm_glm.runtime import usable_cores
    from splitglm_glm.store import ModelStore

    memory = psutil.virtual_memory()
    store = ModelStore()
    existing = next(path for path in (store.root, *store.root.parents) if path.exists())
    pages = huge_pages_status()
    return {
        "splitglm": VERSION,
        "python": f"{platform.python_version()} at {sys.executable}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version_of(name) for name in _PACKAGES},
        "processor": {"name": _processor(), "usable_cores": usable_cores(), "features": cpu_features()},
        "memory": {"free_gb": round(memory.available / 1e9, 1), "total_gb": round(memory.total / 1e9, 1)},
        "huge_pages": {
            "possible": pages.possible,
            "note": "run, chat, demo and cloud serve ask for them" if pages.possible else pages.reason,
        },
        "onnxruntime_providers": _providers(),
        "store": {
            "path": str(store.root),
            "models": [model.name for model in store.list()],
            "free_gb": round(shutil.disk_usage(existing).free / 1e9, 1),
        },
        "serving": serving_facts(memory.available),
    }


def cpu_features(file: Path = _CPU_FILE) -> list[str]:
    """Known instruction sets that the processor announces; empty where the system does not say."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    flags = next(
        (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))), []
    )
    return [name for name in _FEATURES if name in flags]


def _processor() -> str:
    try:
        lines = _CPU_FILE.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _providers() -> list[str]:
    try:
        from splitglm_glm.onnx_runtime import ort
    except ImportError:
        return []
    return list(ort.get_available_providers())
