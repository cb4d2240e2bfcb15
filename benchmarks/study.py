"""The committed study: strategies compared on generated and recorded links, a guard, decoding, and a shared cloud.

``python benchmarks/study.py --traces DIR`` runs the shipped studies (``splitglm sim list``) and writes one report with
all tables and figures to ``results/DATE-study/``. DIR holds the published recordings that the study ``recorded`` names;
without it that study is left out. Finished worlds are kept in ``--work`` and not run again. Every cell depends on its
seed alone, so another machine gets the same figures.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys
import tempfile
import time
from pathlib import Path

from report import RESULTS

from splitglm_sims.study.load import load_study
from splitglm_sims.study.report import Section, write_report
from splitglm_sims.study.run import run_study

STUDIES = ("regret", "guard", "decoding", "crowd")
RECORDED = "recorded"
DRAWN = ("regret", RECORDED)
"""Whose worlds are drawn one by one in the committed report; of the others the figures of the goals are kept."""
SMOKE = ("quick",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, help="folder of the published recordings")
    parser.add_argument("--work", type=Path, default=Path("build/study"), help="where finished worlds are kept")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--studies", nargs="+", help="only these")
    parser.add_argument("--smoke", action="store_true", help="the study 'quick' with one seed; keeps nothing")
    args = parser.parse_args()
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            report(SMOKE, args, Path(folder), Path(folder) / "report", seeds=(1,))
        return
    names = args.studies or (STUDIES if args.traces is None else (STUDIES[0], RECORDED, *STUDIES[1:]))
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    report(names, args, args.work, RESULTS / f"{today}-study", seeds=())


def report(names: tuple[str, ...], args: argparse.Namespace, work: Path, out: Path, *, seeds: tuple[int, ...]) -> None:
    """Run the studies and write their report to ``out``; the page that repeats every figure stays with the worlds."""
    folders = []
    for name in names:
        started_s = time.monotonic()
        ran = run_study(load_study(name, traces=args.traces, seeds=seeds), work / name, jobs=args.jobs)
        folders.append(work / name)
        print(f"{name}: {ran.cells} worlds, {ran.requests} requests, {time.monotonic() - started_s:.0f} s", flush=True)
    sections = [Section.of(folder) for folder in folders]
    html, markdown = write_report(sections, work / "report")
    if out != work / "report":
        keep(names, html, markdown, out)
    for section in sections:
        judged = [verdict for verdict in section.verdicts if verdict.met is not None]
        print(f"{section.results.config.name}: {sum(bool(v.met) for v in judged)} of {len(judged)} goals met")
    print(f"report: {out / markdown.name}; as one page: {html}")


def keep(names: tuple[str, ...], html: Path, markdown: Path, out: Path) -> None:
    """The report without its page and without the figures of single worlds that ``DRAWN`` leaves out."""
    drawn = tuple(f"{number}-" for number, name in enumerate(names) if name in DRAWN)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(markdown.parent, out, ignore=shutil.ignore_patterns(html.name))
    left_out = [f for f in (out / "figures").iterdir() if "-goal-" not in f.name and not f.name.startswith(drawn)]
    for figure in left_out:
        figure.unlink()
    text = (out / markdown.name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not any(f"/{figure.name})" in line for figure in left_out)]
    (out / markdown.name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
