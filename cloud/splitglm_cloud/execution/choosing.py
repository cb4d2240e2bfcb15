"""The executor that a server is configured for, loaded and running."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from splitglm_cloud.engine.events import Emit
from splitglm_cloud.execution.building import build
from splitglm_cloud.execution.executor import Executor
from splitglm_cloud.execution.facts import EngineFacts, EngineSpec
from splitglm_cloud.execution.inline import InlineExecutor
from splitglm_cloud.execution.process import ProcessExecutor
from splitglm_cloud.execution.seats import Supervision
from splitglm_glm.opening import Progress


def open_executor(
    spec: EngineSpec,
    emit: Emit,
    on_lost: Callable[[Sequence[int]], None],
    *,
    workers: int,
    watchdog_s: float,
    progress: Progress | None = None,
) -> tuple[Executor, EngineFacts]:
    """Load the model in ``workers`` processes, or with 0 in this one. Takes seconds to minutes.

    Raises:
        SplitGlmError: what kept it from being served as asked.
    """
    if not workers:
        built = build(spec, progress)
        inline = InlineExecutor(built.make_engine, emit, on_lost)
        inline.start()
        return inline, built.facts
    processes = ProcessExecutor(spec, emit, on_lost, workers=workers, supervision=Supervision(watchdog_s=watchdog_s))
    processes.start(progress)
    return processes, processes.facts
