"""``splitglm pull``: bring a model into the store."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from splitglm_cli.options import Debug, Quiet
from splitglm_cli.progress import building, shown_progress
from splitglm_core.plan import Precision


def pull(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="smollm2-135m, a hub id like org/model, or a checkpoint directory.")
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit of a hub repository.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", envvar="SPLITGLM_OFFLINE", help="Use no network: what is cached must do.")
    ] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name in the store. Default: made from MODEL.")] = None,
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="Also build the graphs of this precision now.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch or copy MODEL, verify it and keep it; a model that is there already is only verified."""
    from splitglm_glm.pull import pull as bring
    from splitglm_glm.store import ModelStore

    store = ModelStore()
    with shown_progress(quiet=quiet) as progress:
        directory = bring(model, store, revision=revision, offline=offline, name=name, progress=progress)
        if precision is not None:
            from splitglm_core.ranges import LayerRange
            from splitglm_glm.opening import open_checkpoint, open_stack

            checkpoint = open_checkpoint(directory.name, store)
            open_stack(
                checkpoint,
                precision,
                layers=LayerRange(0, checkpoint.config.shape.layers),
                embedding=True,
                head=True,
                store=store,
                progress=building(progress, precision.value),
            )
    if not quiet:
        print(f"{directory.name} is ready: splitglm run {directory.name} 'Hello'", file=sys.stderr)
