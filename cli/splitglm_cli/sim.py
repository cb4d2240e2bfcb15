"""``splitglm sim``: studies of strategies in simulated worlds: run them, compare them, list what there is."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitglm_cli import options
from splitglm_core.errors import InputError

if TYPE_CHECKING:
    from splitglm_sims.study.report import Section

_MAX_JOBS = 256
_CELL_CHARS = 100

_Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of finished studies.")]


def run(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A shipped study (`sim list`) or a TOML file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the results; one of this study is gone on with."),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=0, max=_MAX_JOBS, help="Worker processes; 0: every core.")
    ] = 0,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="A,B,...", help="Worlds to run instead of the study's own.")
    ] = None,
    traces: Annotated[
        Path | None, typer.Option("--traces", metavar="DIR", help="Where the study's trace files lie.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Run every world of STUDY that its folder does not hold yet. Stopped, it goes on where it was."""
    import time

    from splitglm_cli.progress import shown_progress
    from splitglm_sims.study.load import load_study
    from splitglm_sims.study.run import run_study

    loaded = load_study(study, traces=traces, seeds=_numbers(seeds))
    folder = Path(f"sim-{loaded.config.name}") if out is None else out.expanduser()
    started_s = time.monotonic()
    with shown_progress(quiet=quiet) as progress:
        ran = run_study(loaded, folder, jobs=jobs or _cores(), progress=progress)
    seconds = time.monotonic() - started_s
    if as_json:
        counts = {"cells": ran.cells, "found": ran.found, "requests": ran.requests, "seconds": round(seconds, 3)}
        print(json.dumps({"study": loaded.config.name, "folder": str(folder), **counts}))
        return
    found = f", {ran.found} were there" if ran.found else ""
    print(f"{ran.cells} worlds run{found}: {ran.requests} requests in {seconds:.1f} s; results in {folder}")
    print(f"next: splitglm sim compare {folder}")


def compare(
    folders: _Folders,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the report. Default: report, in the first DIR."),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """One report on finished studies: a page of HTML that needs nothing else, Markdown with SVG files, and the goals.

    With --json the tables go to standard output, and a report is written only where --out names a folder.
    """
    from splitglm_cli.progress import shown_progress
    from splitglm_sims.study.report import Section, to_json, write_report

    with shown_progress(quiet=quiet) as progress:
        sections = [Section.of(folder.expanduser(), progress) for folder in folders]
        paths: tuple[Path, ...] = ()
        if not as_json or out is not None:
            paths = write_report(sections, folders[0] / "report" if out is None else out.expanduser(), progress)
    if as_json:
        print(json.dumps({"studies": [to_json(section) for section in sections]}))
        return
    for section in sections:
        _print_goals(section)
    print("report: " + ", ".join(map(str, paths)))


def list_all(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Shipped studies, strategies with their sources, link classes, workloads, and presets of devices and clouds.

    Long sources are cut short; --json has them whole.
    """
    import textwrap

    from splitglm_cli.text_table import text_table
    from splitglm_sims.study.inventory import inventory

    shelves = inventory()
    if as_json:
        rows_of = {shelf.name: [dict(zip(shelf.header, row, strict=True)) for row in shelf.rows] for shelf in shelves}
        print(json.dumps(rows_of))
        return
    parts = []
    for shelf in shelves:
        rows = [[textwrap.shorten(cell, _CELL_CHARS, placeholder=" ...") for cell in row] for row in shelf.rows]
        parts.append(f"{shelf.name}\n{text_table(shelf.header, rows)}")
    print("\n\n".join(parts))


def _print_goals(section: Section) -> None:
    from splitglm_cli.text_table import text_table
    from splitglm_sims.study.tables import goals

    table = goals(section.verdicts)
    judged = [verdict.met for verdict in section.verdicts if verdict.met is not None]
    print(f"{section.results.config.name}: {sum(judged)} of {len(judged)} goals met")
    if table.rows:
        print(text_table(table.header, table.rows))


def _numbers(text: str | None) -> tuple[int, ...]:
    words = [] if text is None else text.split(",")
    if not all(word.isascii() and word.isdecimal() and len(word) <= 10 for word in words):
        raise InputError(f"--seeds {text!r} is not a list of whole numbers", "write for example --seeds 1,2,3")
    return tuple(map(int, words))


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(cores, _MAX_JOBS)
