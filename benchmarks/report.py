"""What every result needs: the machine, the versions, the command, one table. No host names, no paths."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def environment(*packages: str) -> list[str]:
    """Lines that say where the figures come from."""
    found = []
    for package in ("splitglm", "numpy", "onnxruntime", *packages):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} absent")
    script = Path(sys.argv[0])
    command = " ".join([f"{script.parent.name}/{script.name}", *sys.argv[1:]])
    load = f", load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return [
        f"- machine: {_cpu_name()}, {len(os.sched_getaffinity(0))} cores{load}",
        f"- system: {platform.system()} {platform.release()}, Python {platform.python_version()}",
        f"- packages: {', '.join(found)}",
        f"- command: `python {command}`",
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns padded so that it reads in a terminal too."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Median and range: ``12.3 (11.0-15.1)``."""
    low, mid, high = min(values) * scale, statistics.median(values) * scale, max(values) * scale
    return f"{mid:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def write(theme: str, title: str, environment_lines: Sequence[str], body: str, *, save: bool) -> None:
    """Print the report and, unless it was a smoke run, keep it as ``results/DATE-THEME.md``."""
    text = "\n".join([f"# {title}", "", *environment_lines, "", body, ""])
    print(text)
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{date.today().isoformat()}-{theme}.md").write_text(text, encoding="utf-8")


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
