"""What tests of executors share: a model, steps, and an ear that remembers what was said in which order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from splitglm_cloud.engine.events import Event, Evicted, Failure, Owner
from splitglm_cloud.execution.building import build
from splitglm_cloud.execution.facts import EngineSpec
from splitglm_cloud.execution.inline import InlineExecutor
from splitglm_cloud.execution.process import ProcessExecutor
from splitglm_cloud.execution.seats import Supervision
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire import codec
from splitglm_wire.actions import Configure, Output
from splitglm_wire.frames import Reply, Rows, Step

LAYERS, HIDDEN, CONTEXT = 3, 1024, 500
PATIENCE_S = 30.0
CLOUD = SplitPlan.cloud_only(LAYERS)
USHAPE = SplitPlan(layers=LAYERS, s=1, t=2, head=HeadSide.DEVICE, codec=Codec.FP32)
Executor = InlineExecutor | ProcessExecutor


class Ear:
    """Hears events and losses on the executor's thread, and waits for what is to come."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.heard: list[tuple[int, Event | None]] = []  # None: lost
        self.threads: set[int] = set()

    def emit(self, session: int, event: Event) -> None:
        self._hear([(session, event)])

    def on_lost(self, sessions: Sequence[int]) -> None:
        self._hear([(session, None) for session in sessions])

    def _hear(self, news: list[tuple[int, Event | None]]) -> None:
        with self._changed:
            self.heard += news
            self.threads.add(threading.get_ident())
            self._changed.notify_all()

    def of(self, session: int) -> list[Event | None]:
        return [event for heard, event in list(self.heard) if heard == session]

    def ends(self, session: int, seq: int) -> list[Event]:
        """What ended step ``seq`` of the session."""
        return [event for event in self.of(session) if is_end(event) and event.seq == seq]  # type: ignore[union-attr]

    def wait(self, until: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        with self._changed:
            assert self._changed.wait_for(until, timeout_s), f"not within {timeout_s} s; heard {self.heard[-5:]}"

    def wait_end(self, session: int, seq: int) -> Event:
        self.wait(lambda: bool(self.ends(session, seq)))
        return self.ends(session, seq)[0]

    def wait_lost(self, session: int, times: int = 1) -> None:
        self.wait(lambda: self.of(session).count(None) >= times)

    def lost(self) -> set[int]:
        return {session for session, event in list(self.heard) if event is None}

    def tokens(self, session: int) -> list[int]:
        outputs = [event for event in self.of(session) if isinstance(event, Output) and event.rows]
        return [int.from_bytes(output.payload, "little") for output in outputs]


def is_end(event: Event | None) -> bool:
    return isinstance(event, Failure | Evicted) or (isinstance(event, Output) and event.last)


def spec_of(model: Path, runner: str = "executor_runner:counting", **changes: object) -> EngineSpec:
    return EngineSpec(model=str(model), runner=runner, threads=1, kv_budget_bytes=1 << 30, **changes)  # type: ignore[arg-type]


def inline_of(model: Path, ear: Ear, **changes: object) -> InlineExecutor:
    return InlineExecutor(build(spec_of(model, **changes)).make_engine, ear.emit, ear.on_lost)


def processes_of(
    model: Path, ear: Ear, *, workers: int = 1, supervision: Supervision | None = None, **changes: object
) -> ProcessExecutor:
    spec = spec_of(model, **changes)
    return ProcessExecutor(spec, ear.emit, ear.on_lost, workers=workers, supervision=supervision)


def configure(
    executor: Executor, session: int, plan: SplitPlan = CLOUD, *, keep: int = 0, deadline_ms: int = 0
) -> None:
    config = Configure(
        plan=plan,
        sampling=SamplingParams(),
        generated=(),
        stop_ids=(),
        context=CONTEXT,
        keep=0,
        deadline_ms=deadline_ms,
    )
    executor.configure(session, config, Owner("tenant", 2.0))


def ids_step(ids: Sequence[int], *, seq: int = 1, base: int = 0, generate: int = 5) -> Step:
    """Tokens up, ``generate`` of them down; with 0 only an acknowledgement."""
    return Step(
        handle=1,
        fence=1,
        seq=seq,
        base=base,
        rows_kind=Rows.IDS,
        rows=len(ids),
        reply=Reply.TOKEN if generate else Reply.ACK,
        generate=generate,
        payload=np.array(ids, "<u4").tobytes(),
    )


def hidden_step(hidden: np.ndarray, *, seq: int = 1, base: int = 0) -> Step:
    """Hidden states up, all of them down."""
    return Step(
        handle=1,
        fence=1,
        seq=seq,
        base=base,
        rows_kind=Rows.HIDDEN,
        rows=len(hidden),
        reply=Reply.ALL_HIDDEN,
        generate=0,
        payload=codec.encode(hidden, Codec.FP32, base=base),
    )


def eventually(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """For states that nobody announces: processes, descriptors, figures."""
    deadline_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s"
        pause.wait(0.01)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
