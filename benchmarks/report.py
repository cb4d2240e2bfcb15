"""What every benchmark report says about itself: machine, versions, load, command, table."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def cpu_model() -> str:
    """Name, core count and vector extensions of the processor."""
    names: list[str] = []
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                names.append(value.strip())
            elif key.strip() == "flags":
                flags = set(value.split())
    except OSError:
        names = [platform.processor()]
    extensions = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if f in flags]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {' '.join(extensions)}"


def memory_gib() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return 0.0


def versions(packages: Iterable[str]) -> str:
    """``name version`` of the packages that are installed."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join([f"Python {platform.python_version()}", *found])


def load_average() -> str:
    """The 1-minute load average, to judge whether other work disturbed the run."""
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median with the range in brackets."""
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def command_line() -> str:
    """The command of this run; directories outside the repository are shortened to their last component."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def write_report(name: str, title: str, sections: Sequence[str], *, packages: Iterable[str], write: bool) -> str:
    """Print the report and, when ``write``, keep it as ``results/<date>-<name>.md``. Returns its text."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    facts = [
        f"* date: {today}",
        f"* machine: {cpu_model()}, {memory_gib():.0f} GiB, {platform.system()} {platform.machine()}",
        f"* versions: {versions(packages)}",
        f"* load average at the end: {load_average()}",
        f"* command: `{command_line()}`",
    ]
    text = "\n\n".join([f"# {title}", "\n".join(facts), *sections]) + "\n"
    print(text)
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{today}-{name}.md").write_text(text, encoding="utf-8")
    return text
