"""What ``doctor`` tells about this machine as a cloud: memory for keys and values, limits, sockets, accelerators."""

from __future__ import annotations

import os
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from splitglm_core.errors import SplitGlmError

_SHARED_MEMORY: Final = Path("/dev/shm")
_DRIVER: Final = Path("/proc/driver/nvidia/version")
_FILES_BESIDE_STREAMS: Final = 128
"""Files that a server opens beside one socket per stream: model, graphs, logs, workers' pipes."""


def serving_facts(available_bytes: int) -> dict[str, Any]:
    """Plain values for JSON, by the settings that ``cloud serve`` would have here without flags.

    Args:
        available_bytes: memory that is free now.
    """
    from splitglm_cloud.settings import CloudSettings
    from splitglm_cloud.settings_sources import resolve

    facts: dict[str, Any] = {}
    try:
        found = resolve(flags={}, environment=os.environ)
        settings = CloudSettings(**{"model": "none", **found.values})
    except SplitGlmError as error:
        facts["settings"] = error.one_line()
        settings = CloudSettings(model="none")
    else:
        changed = sorted(origin.where for origin in found.origins.values())
        facts["settings"] = f"set by {', '.join(dict.fromkeys(changed))}" if changed else "defaults"
    budget = settings.kv_budget_bytes
    return facts | {
        "executor": settings.executor if settings.executor == "inline" else f"process, {settings.workers} workers",
        "kv_budget": _against(budget, available_bytes, "the memory that is free; lower kv_budget_bytes"),
        "open_files": _open_files(settings.max_streams + _FILES_BESIDE_STREAMS),
        "shared_memory": _shared_memory(),
        "status_sockets": _runtime_dir(settings.runtime_dir),
        "accelerator": {"torch": _version_of("torch"), "nvidia_driver": _driver()},
        "traces": "possible" if _version_of("opentelemetry-sdk") else "pip install 'splitglm[otel]'",
    }


def _against(wanted_bytes: int, available_bytes: int, of_what: str) -> str:
    said = f"{wanted_bytes / 1e9:.1f} GB of {available_bytes / 1e9:.1f} GB free"
    return said if wanted_bytes <= available_bytes else f"{said}: more than {of_what}"


def _open_files(needed: int) -> str:
    try:
        import resource
    except ImportError:
        return "no limit known"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return "no limit"
    said = f"at most {soft}"
    return said if soft >= needed else f"{said}, but max_streams needs {needed}: ulimit -n {needed} (hard limit {hard})"


def _shared_memory() -> str:
    """Where worker processes and the gateway exchange rows."""
    if not _SHARED_MEMORY.is_dir():
        return "none: worker processes need /dev/shm"
    usage = shutil.disk_usage(_SHARED_MEMORY)
    return f"{usage.free / 1e9:.2f} GB of {usage.total / 1e9:.2f} GB free in {_SHARED_MEMORY}"


def _runtime_dir(named: Path | None) -> str:
    from splitglm_cloud.status_files import default_runtime_dir, free_socket_path, make_ours

    directory = named or default_runtime_dir()
    try:
        make_ours(directory)
        free_socket_path(directory, "doctor")
    except SplitGlmError as error:
        return error.one_line()
    return str(directory) if os.access(directory, os.W_OK | os.X_OK) else f"{directory} cannot be written"


def _driver() -> str | None:
    try:
        first = _DRIVER.read_text(encoding="utf-8", errors="replace").splitlines()[0]
    except (OSError, IndexError):
        return None
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", first)
    return found[0] if found else "of unknown version"


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
