"""How ONNX Runtime is used: threads, memory and execution providers, the same for every session of a process."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from splitglm_core.errors import DeviceError, ModelInvalid
from splitglm_glm.onnx_runtime import ort

CPU = "CPUExecutionProvider"
PROVIDER_PREFERENCE = (
    "TensorrtExecutionProvider",
    "CUDAExecutionProvider",
    "CoreMLExecutionProvider",
    "QNNExecutionProvider",
    "XnnpackExecutionProvider",
    CPU,
)
_SEVERITY_ERROR = 3
_ARENA_STEP_BYTES = 1 << 20
_EXTEND_AS_REQUESTED = 1

# ONNX Runtime keeps one environment per process; these say what this module has put into it.
_environment_lock = threading.Lock()
_pool_threads: int | None = None
_arena_shared: bool | None = None


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """Settings of every session of a process.

    Attributes:
        threads: compute threads per forward pass, the calling one included; 0 means all usable cores.
        spinning: True keeps one process-wide pool whose threads spin between operators and for some tens of
            milliseconds after a pass: the fastest decode on an otherwise idle machine. False gives each session
            its own pool that sleeps: nothing is burnt while waiting for the network or beside other processes.
        providers: execution providers in order of preference; those not installed are skipped, and the CPU is
            always the last resort.
    """

    threads: int = 0
    spinning: bool = False
    providers: tuple[str, ...] = PROVIDER_PREFERENCE

    @property
    def thread_count(self) -> int:
        return self.threads if self.threads > 0 else usable_cores()


@dataclass(slots=True)
class SessionFactory:
    """Opens sessions with one set of options and settles on an execution provider.

    The first provider of the preference list that opens a session wins for all later ones; a provider that cannot is
    recorded with its reason and not tried again.

    Attributes:
        options: the settings.
        rejected: provider name -> why it was passed over.
    """

    options: RuntimeOptions
    rejected: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def candidates(self) -> tuple[str, ...]:
        """Installed providers in order of preference, without the rejected ones; the CPU is last."""
        installed = set(ort.get_available_providers())
        wanted = dict.fromkeys((*self.options.providers, CPU))
        return tuple(name for name in wanted if name in installed and name not in self.rejected)

    def open(self, path: Path, graph: bytes | None = None, *, threads: int | None = None) -> ort.InferenceSession:
        """A session over the graph at ``path``.

        Args:
            path: the graph file; its external data lies beside it.
            graph: serialised graph to open instead of the file's own content.
            threads: other than the options say; ignored where one pool serves the whole process.

        Raises:
            ModelInvalid: the CPU cannot open the graph either.
        """
        options = self.options if threads is None else dataclasses.replace(self.options, threads=threads)
        with self._lock:
            for provider in self.candidates():
                try:
                    session = self._open_with(path, graph, options, provider)
                except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
                    if provider == CPU:
                        raise ModelInvalid(
                            f"ONNX Runtime cannot load {path.name}: {_first_line(error)}",
                            "run `splitglm pull` for this model again",
                        ) from error
                    self.rejected[provider] = _first_line(error)
                    continue
                if session.get_providers()[0] == provider:
                    return session
                self.rejected[provider] = "ONNX Runtime fell back to another provider on its own"
        raise DeviceError("this build of ONNX Runtime has no CPU provider", "reinstall onnxruntime")

    @staticmethod
    def _open_with(path: Path, graph: bytes | None, options: RuntimeOptions, provider: str) -> ort.InferenceSession:
        names = [provider] if provider == CPU else [provider, CPU]
        settings = session_options(options)
        if graph is None:
            return ort.InferenceSession(str(path), settings, providers=names)
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        return ort.InferenceSession(graph, settings, providers=names)


def session_options(options: RuntimeOptions) -> ort.SessionOptions:
    """Options as measured for chains of one-layer sessions.

    Sequential execution, no memory pattern (lengths vary), and one arena of scratch memory for all sessions. With an
    arena per session, or none at all, every session keeps its own scratch after a prefill chunk (glibc reuses aligned
    blocks badly): 28 layers of GLM-Edge-1.5B then hold 800 MB more than their weights, with a shared arena 100 MB.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = _SEVERITY_ERROR
    settings.enable_cpu_mem_arena = False
    settings.enable_mem_pattern = False
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    if share_arena():
        settings.add_session_config_entry("session.use_env_allocators", "1")
        settings.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    threads = options.thread_count
    if threads > 1 and options.spinning and share_thread_pool(threads):
        settings.use_per_session_threads = False
        return settings
    settings.inter_op_num_threads = 1
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


def share_thread_pool(threads: int) -> bool:
    """Create the process-wide pool once. False when it exists with another size or ONNX Runtime refuses."""
    global _pool_threads
    with _environment_lock:
        if _pool_threads is None:
            try:
                ort.set_global_thread_pool_sizes(threads, 1)
            except Exception:  # created by the application before us: its size is unknown
                return False
            _pool_threads = threads
        return _pool_threads == threads


def share_arena() -> bool:
    """Register the process-wide scratch arena once. False when ONNX Runtime refuses (the application made one)."""
    global _arena_shared
    with _environment_lock:
        if _arena_shared is None:
            kind, place = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
            arena = ort.OrtArenaCfg(
                {
                    "max_mem": 0,
                    "arena_extend_strategy": _EXTEND_AS_REQUESTED,
                    "initial_chunk_size_bytes": _ARENA_STEP_BYTES,
                    "max_dead_bytes_per_chunk": _ARENA_STEP_BYTES,
                }
            )
            try:
                ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", kind, 0, place), arena)
                _arena_shared = True
            except Exception:
                _arena_shared = False
        return _arena_shared


def shrinking_run() -> ort.RunOptions:
    """Run options that give the unused part of the shared arena back when the run ends."""
    options = ort.RunOptions()
    options.log_severity_level = _SEVERITY_ERROR
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def trim_heap() -> None:
    """Let glibc give freed memory back to the system (some milliseconds); nothing happens with other C libraries."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
        return found
    except (OSError, AttributeError):
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
