"""The engine's thread: commands and batches take turns, whatever is sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from splitglm_cloud.engine.events import Owner
from splitglm_cloud.engine.stats import EngineStats
from splitglm_cloud.execution import inline
from splitglm_cloud.execution.inline import COMMANDS_S, InlineExecutor

COMMAND_S = 0.4 * COMMANDS_S


class SlowToCommand:
    """An engine of which every command takes long; ``done`` says what it did. Its clock moves only when it works."""

    parked = 0

    def __init__(self, batches: int) -> None:
        self.done = ""
        self.now_s = 0.0
        self._batches = batches

    def configure(self, session: int, config: Any, owner: Owner) -> None:
        self.now_s += COMMAND_S
        self.done += "c"

    def turn(self) -> bool:
        self.done += "t"
        self._batches -= 1
        return self._batches > 0

    def stats(self) -> EngineStats:
        return EngineStats()

    def close(self) -> None:
        self.done += "."


@pytest.mark.parametrize("batches", [0, 100])
def test_costly_commands_do_not_hold_up_the_batches(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that opens replies one after the other, each with a long history, must not stop everybody else."""
    engine: Any = SlowToCommand(batches)
    monkeypatch.setattr(inline, "time", SimpleNamespace(monotonic=lambda: engine.now_s))
    executor = InlineExecutor(lambda emit: engine, lambda session, event: None, lambda sessions: None)
    config: Any = None
    for session in range(30):
        executor.configure(session, config, Owner())
    executor.start()
    assert executor.stop(10.0)
    assert engine.done.count("c") == 30 and engine.done.endswith(".")
    assert "cccc" not in engine.done
