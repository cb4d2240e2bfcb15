"""Providers fall back with a reason; huge pages are asked for once and never required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest
from glm_factory import write_tiny_checkpoint

from splitglm_core.errors import ModelInvalid
from splitglm_core.plan import Precision
from splitglm_glm import runtime
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export.build import ensure_graphs
from splitglm_glm.huge_pages import huge_page_bytes, huge_page_environment, huge_pages_status
from splitglm_glm.runtime import CPU, RuntimeOptions, SessionFactory, session_options, usable_cores

CUDA, COREML = "CUDAExecutionProvider", "CoreMLExecutionProvider"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="huge pages are a Linux matter")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runtime")
    checkpoint = Checkpoint.open(write_tiny_checkpoint(directory, layers=1))
    return ensure_graphs(checkpoint, Precision.INT8, directory / "g", parts=["layer-000"]) / "layer-000.onnx"


def test_candidates_are_the_installed_providers_in_order_of_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU, COREML, CUDA])
    assert SessionFactory(RuntimeOptions(threads=1)).candidates() == (CUDA, COREML, CPU)
    assert SessionFactory(RuntimeOptions(threads=1, providers=(COREML,))).candidates() == (COREML, CPU)


def test_a_provider_that_fails_is_recorded_once_and_the_next_one_opens(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    real = ort.InferenceSession

    def open_session(path: str, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
        tried.append(providers[0])
        if providers[0] == CUDA:
            raise RuntimeError("no driver found\nat line 3")
        return real(path, options, providers=[CPU])  # what ONNX Runtime does when a provider's library is missing

    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU, COREML, CUDA])
    monkeypatch.setattr(ort, "InferenceSession", open_session)
    factory = SessionFactory(RuntimeOptions(threads=1))
    assert factory.open(graph).get_providers() == [CPU]
    factory.open(graph)
    assert tried == [CUDA, COREML, CPU, CPU]
    assert factory.rejected[CUDA] == "no driver found"
    assert "fell back" in factory.rejected[COREML]


def test_a_graph_that_no_provider_opens_is_the_models_fault(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelInvalid, match=r"cannot load broken\.onnx"):
        SessionFactory(RuntimeOptions(threads=1)).open(tmp_path / "broken.onnx")


def test_sessions_use_no_arena_and_the_threads_asked_for() -> None:
    settings = session_options(RuntimeOptions(threads=3))
    assert (settings.enable_cpu_mem_arena, settings.enable_mem_pattern) == (False, False)
    assert (settings.intra_op_num_threads, settings.inter_op_num_threads) == (3, 1)
    assert RuntimeOptions().thread_count == usable_cores() >= 1


def test_the_shared_pool_is_made_once_and_another_size_gets_its_own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(runtime, "_pool_threads", None)
    monkeypatch.setattr(ort, "set_global_thread_pool_sizes", lambda intra, inter: sizes.append(intra))
    shared = session_options(RuntimeOptions(threads=2, spinning=True))
    again = session_options(RuntimeOptions(threads=2, spinning=True))
    other = session_options(RuntimeOptions(threads=3, spinning=True))
    assert sizes == [2]
    assert not shared.use_per_session_threads and not again.use_per_session_threads
    assert other.use_per_session_threads and other.intra_op_num_threads == 3


def test_a_pool_made_by_the_application_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(intra: int, inter: int) -> None:
        raise RuntimeError("Global thread pools have already been created, cannot replace them")

    monkeypatch.setattr(runtime, "_pool_threads", None)
    monkeypatch.setattr(ort, "set_global_thread_pool_sizes", refuse)
    assert session_options(RuntimeOptions(threads=2, spinning=True)).use_per_session_threads


@linux_only
@pytest.mark.parametrize(
    ("policy", "glibc", "tunables", "active", "possible"),
    [
        ("always [madvise] never", (2, 39), "", False, True),
        ("[always] madvise never", (2, 35), "a=1:glibc.malloc.hugetlb=1", True, True),
        ("always madvise [never]", (2, 39), "glibc.malloc.hugetlb=1", False, False),
        ("always [madvise] never", (2, 31), "glibc.malloc.hugetlb=1", False, False),
        ("always [madvise] never", (), "", False, False),
    ],
)
def test_huge_page_status_names_what_is_missing(
    tmp_path: Path, policy: str, glibc: tuple[int, ...], tunables: str, active: bool, possible: bool
) -> None:
    (tmp_path / "enabled").write_text(policy)
    status = huge_pages_status({"GLIBC_TUNABLES": tunables}, policy_file=tmp_path / "enabled", glibc=glibc)
    assert (status.active, status.possible) == (active, possible)
    assert bool(status.reason) is not active


@linux_only
def test_a_kernel_without_huge_pages_is_no_error(tmp_path: Path) -> None:
    status = huge_pages_status({}, policy_file=tmp_path / "absent", glibc=(2, 39))
    assert not status.possible and "kernel" in str(status)


def test_other_tunables_of_the_user_are_kept() -> None:
    environment = huge_page_environment({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0:glibc.pthread.rseq=0", "A": "b"})
    assert environment["GLIBC_TUNABLES"] == "glibc.pthread.rseq=0:glibc.malloc.hugetlb=1"
    assert environment["A"] == "b"


@linux_only
def test_a_process_relaunches_itself_at_most_once_and_keeps_its_arguments() -> None:
    script = (
        "import os, sys\n"
        "print('start', flush=True)\n"
        "from splitglm_glm.huge_pages import huge_pages_status, relaunch_with_huge_pages\n"
        "status = relaunch_with_huge_pages()\n"
        "print('main', status.active == huge_pages_status().active, sys.argv[1:])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "SPLITGLM_HUGE_PAGES")}
    done = subprocess.run(
        [sys.executable, "-c", script, "one two", "-3"], env=environment, capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert lines.count("main True ['one two', '-3']") == 1
    assert lines.count("start") == (2 if huge_pages_status(environment).possible else 1)


@linux_only
def test_huge_page_bytes_are_read_where_the_kernel_tells() -> None:
    found = huge_page_bytes()
    assert (found is not None) == Path("/proc/self/smaps_rollup").exists()
