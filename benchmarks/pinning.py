"""Which processor cores the measured server and the measuring process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def pin_here(cores: tuple[int, ...]) -> None:
    """Keep every thread of this process on ``cores``; nothing happens for none, or where the system cannot."""
    if cores and hasattr(os, "sched_setaffinity"):
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


@contextmanager
def pinned_children(cores: tuple[int, ...]) -> Iterator[None]:
    """Processes that are started within stay on ``cores``: a child inherits what its parent may use at its start."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
