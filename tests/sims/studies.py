"""A study small enough to be run many times, and cells whose figures are known."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from splitglm_core.errors import InputError
from splitglm_core.plan import HeadSide, SplitPlan
from splitglm_partitioner.observations import Outcome
from splitglm_sims.study.columns import Columns, ColumnsBuilder
from splitglm_sims.study.config import LoadedStudy
from splitglm_sims.study.load import load_study
from splitglm_sims.study.store import Cell
from splitglm_sims.traces import RateTrace
from splitglm_sims.world.record import Record
from splitglm_sims.world.scene import Job, LinkScene

SMALL = """
name = "small"
about = "for tests"
seeds = [1, 2]
requests = 6
workloads = ["chat"]
device = "demo-2core"
cloud = "cpu-2core"
privacy = ["open"]

[conditions]
cloud_load = true
device_jitter = 0.05

[[links]]
name = "lte-driving"

[[links]]
name = "wifi-poor"

[[strategies]]
name = "fixed"
label = "u-shape"
role = "judged"
options = { arm = "ushape", cut = "low" }

[[strategies]]
name = "device-only"
role = "side"

[[strategies]]
name = "cloud-only"
role = "side"
"""

SPLIT = """
[[strategies]]
name = "fixed"
label = "split"
role = "fixed"
options = { arm = "split" }
"""
"""A fixed arm beside the sides."""


def small_study(folder: Path, text: str = SMALL) -> LoadedStudy:
    """``text`` as a loaded study."""
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return load_study(str(path))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a study's folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


LINK = LinkScene(up=RateTrace.constant(1e5), down=RateTrace.constant(2e5), rtt_s=0.05)
COSTS = {"u-shape": 1.04, "device-only": 1.3, "cloud-only": 1.2, "split": 1.25}
"""What a request of ``made_up`` costs by strategy, of its best plan's 1; on Wi-Fi the u-shape costs 1.5 instead."""


def made_up(study: LoadedStudy, cell: Cell) -> Columns:
    """Records of known cost, the same for every request of a seed but for the seed's own factor."""
    cost = 1.5 if (cell.strategy.label, cell.link.name) == ("u-shape", "wifi-poor") else COSTS[cell.strategy.label]
    arm = {"u-shape": "ushape", "split": "ushape"}.get(cell.strategy.label, cell.strategy.label.removesuffix("-only"))
    asked = tuple(job(index) for index in range(study.config.requests or 1))
    builder = ColumnsBuilder()
    builder.add((record(index, cost * cell.seed, 1.0 * cell.seed, arm) for index in range(len(asked))), asked, LINK)
    return builder.build({"made up": float(cell.seed)})


def job(index: int) -> Job:
    return Job(at_s=10.0 * index, prompt_tokens=20, new_tokens=5, max_new_tokens=8, genre="chat", conversation=index)


def record(index: int, value: float, best: float | None, arm: str, *, failed: str | None = None) -> Record:
    """A reply of five tokens that took ``value`` seconds, a fifth of it until the first one."""
    plans = {
        "device": SplitPlan.device_only(30),
        "cloud": SplitPlan.cloud_only(30),
        "ushape": SplitPlan(layers=30, s=1, t=29, head=HeadSide.DEVICE, drafter="lookup", draft_tokens=2),
    }
    outcome = Outcome(
        ttft_s=value / 5, total_s=value, new_tokens=5, uplink_bytes=1000, downlink_bytes=500, energy_j=2.0, price=0.25
    )
    return Record(
        job=index,
        start_s=10.0 * index + 0.5,
        probe_s=0.1 * value,
        plan=plans[arm],
        outcome=outcome,
        value=value,
        predicted_ttft_s=1.1 * value / 5,
        predicted_per_token_s=0.9 * value / 5,
        best_plan=plans["cloud"],
        best_value=best,
        failed=failed,
    )


def kill_this_process(study: LoadedStudy, cell: Cell) -> Columns:
    """A worker that is killed, for want of memory perhaps."""
    os.kill(os.getpid(), signal.SIGKILL)
    return made_up(study, cell)


def refuse(study: LoadedStudy, cell: Cell) -> Columns:
    """A cell that cannot be."""
    raise InputError("no such world", "make another")
