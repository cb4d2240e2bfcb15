"""``splitglm rm``: remove a model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from splitglm_cli.options import Debug, Quiet


def rm(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name in the store.")],
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Remove MODEL from the store, and what was built from it."""
    from splitglm_glm.store import ModelStore

    store = ModelStore()
    found = store.show(model)
    store.remove(model)
    if not quiet:
        freed = (found.size_bytes + found.graphs_bytes) / 1e6
        print(f"removed {found.name}, {freed:.0f} MB with its graphs", file=sys.stderr)
