"""Plain columns for standard output: they survive a pipe, a log and a narrow terminal."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    lines = [headings, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def text_facts(facts: Sequence[tuple[str, str]]) -> str:
    """One ``name  value`` line per fact; further lines of a value are indented below the first."""
    width = max(len(name) for name, _ in facts)
    return "\n".join(
        f"{name.ljust(width)}  {value.replace(chr(10), chr(10) + ' ' * (width + 2))}" for name, value in facts
    )
