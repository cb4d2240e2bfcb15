"""Drives one scenario against a cloud: generator processes, a probe where the scenario has one, one result."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from splitglm_core.errors import DeviceError, InputError
from splitglm_partitioner.typed_json import dumps
from splitglm_sims.load.generator import Job, Model
from splitglm_sims.load.record import Record
from splitglm_sims.load.result import LoadResult, capacity_of, result_of
from splitglm_sims.load.scenario import Scenario
from splitglm_sims.load.schedule import schedule
from splitglm_sims.load.stream import LoadStream, Target

START_DELAY_S: Final = 0.3
"""Between the last generator's word that it is ready and the start: time for all of them to hear of it."""
SETTLE_S: Final = 1.0
"""Between the probe and the first phase: the cloud ends what the probe left behind."""
_ERROR_CHARS: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run, beside the scenario.

    Attributes:
        cores: processor cores of the generators; empty leaves it to the system.
        recorded: file of hidden states to send instead of random ones, raw little-endian float32.
        progress: told what is being done.
    """

    cores: tuple[int, ...] = ()
    recorded: Path | None = None
    progress: Callable[[str], None] = lambda what: None


def run_scenario(scenario: Scenario, target: Target, model: Model, options: Options | None = None) -> LoadResult:
    """Run ``scenario`` against ``target``, which serves ``model``.

    Raises:
        LinkError, PeerUntrusted, ModelMismatch and others: the cloud cannot be reached or trusted.
        InputError: the scenario cannot be scheduled.
        DeviceError: a generator failed.
    """
    options = options or Options()
    job = Job(
        scenario=scenario,
        model=model,
        address=target.address,
        key=asyncio.run(_meet(target)).hex(),
        psks=tuple(psk.hex() for psk in target.psks),
        share=0,
        of=scenario.generators,
        probing=False,
        capacity_per_s=None,
        cores=options.cores,
        recorded="" if options.recorded is None else str(options.recorded),
        out="",
    )
    job.bank()  # a bad file is told before anything is started
    probe, capacity_per_s = None, None
    if scenario.phases[0].closed_sessions is not None:
        options.progress(f"probing the capacity for {scenario.phases[0].seconds:g} s")
        probe = _generate(replace(job, probing=True))
        capacity_per_s = capacity_of(probe, scenario)
        if capacity_per_s <= 0.0:
            raise DeviceError("the cloud served no session of the capacity probe", "try the scenario `steady`")
        options.progress(f"capacity: {capacity_per_s:.2f} sessions per second")
        time.sleep(SETTLE_S)
    job = replace(job, capacity_per_s=capacity_per_s)
    plans = schedule(scenario, layers=model.layers, capacity_per_s=capacity_per_s)
    if not plans and probe is None:
        raise InputError("nothing arrives in this scenario", "raise its rate or length")
    seconds = sum(phase.seconds for phase in scenario.phases if phase.closed_sessions is None)
    options.progress(f"sending {len(plans)} sessions in {seconds:g} s")
    record = _generate(job) if plans else Record()
    return result_of(scenario, record, probe, capacity_per_s)


async def _meet(target: Target) -> bytes:
    """The cloud's key, trusted: the generators accept this one and no other."""
    stream = await LoadStream.connect(target)
    await stream.close()
    return stream.remote_static


def _generate(job: Job) -> Record:
    """Run every generator's share at the same time and put their records together."""
    with contextlib.ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="splitglm-load-")))
        jobs = [replace(job, share=share, out=str(folder / f"{share}.record")) for share in range(job.of)]
        processes = [_started(one, folder, cleanup) for one in jobs]
        for number, process in enumerate(processes):
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise _failure(folder, number)
        start_s = time.monotonic() + START_DELAY_S
        for process in processes:
            _tell(process, repr(start_s))
        record = Record()
        for number, (one, process) in enumerate(zip(jobs, processes, strict=True)):
            if process.wait() != 0:
                raise _failure(folder, number)
            record.merge(Record.load(Path(one.out)))
        return record


def _started(job: Job, folder: Path, cleanup: contextlib.ExitStack) -> subprocess.Popen[str]:
    errors = cleanup.enter_context((folder / f"{job.share}.err").open("w", encoding="utf-8"))
    process = subprocess.Popen(
        [sys.executable, "-m", "splitglm_sims.load.generator"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
    )
    cleanup.callback(_stopped, process)
    _tell(process, dumps(job))
    return process


def _tell(process: subprocess.Popen[str], line: str) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # it ended: its exit code tells
            process.stdin.write(line + "\n")
            process.stdin.flush()


def _stopped(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _failure(folder: Path, share: int) -> DeviceError:
    lines = (folder / f"{share}.err").read_text("utf-8", "replace").strip().splitlines()
    return DeviceError(f"generator {share} failed: {(lines or ['no message'])[-1][:_ERROR_CHARS]}")
