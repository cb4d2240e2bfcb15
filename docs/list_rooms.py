"""Rewrites the list of files in ``docs/structure.md`` from the first line of every module's docstring.

``python docs/list_rooms.py`` (or ``make structure``) writes; ``--check`` only compares and fails on a difference.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "structure.md"
BEGIN, END = "<!-- files: written by `make structure` -->\n", "<!-- end of files -->\n"

# From the ground floor up, as the floors contract in pyproject.toml has them.
ROOMS = (
    ("core", 1, "the words that everything else uses; standard library only"),
    ("proto", 2, "the contract between the halves, package `splitglm_wire`; no sockets, no clock"),
    ("security", 2, "the secure channel: seals bytes, knows no frames, opens no socket"),
    ("partitioner", 2, "where to cut: pure functions over frozen values, numpy only"),
    ("glm", 2, "the model, without torch except in `model.py` and `linear.py`"),
    ("edge", 3, "the device's half; never imports torch"),
    ("cloud", 3, "the service's half"),
    ("sims", 4, "emulated links and simulated worlds around the product's own code"),
    ("cli", 5, "the `splitglm` command, one file per verb"),
)


def first_line(file: Path) -> str:
    """The module's docstring up to its first line break, as a clause: no full stop, no doubled backquotes."""
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    line = re.sub(r"`{2}", "`", doc.partition("\n")[0].strip())
    return line.removesuffix(".")


def listing() -> str:
    lines = []
    for folder, floor, what in ROOMS:
        lines += [f"**{folder}/** (floor {floor}): {what}.", ""]
        for file in sorted((ROOT / folder).rglob("*.py"), key=lambda path: (len(path.parts), path)):
            generated = re.search(r"_pb2(_grpc)?\.py$", file.name)
            if generated or (file.name == "__init__.py" and not first_line(file)):
                continue
            name = file.relative_to(ROOT / folder).as_posix().partition("/")[2]
            if name != "__init__.py":
                lines.append(f"- `{name}`: {first_line(file)}")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        print(f"{PAGE.name} has lost the marks of its list", file=sys.stderr)
        return 1
    fresh = head + begin + "\n" + listing() + end + tail
    if fresh == page:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE.name} does not list the tree as it is: run `make structure`", file=sys.stderr)
        return 1
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
