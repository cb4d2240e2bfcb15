"""The command line: every verb under its name."""

from __future__ import annotations

from typing import Annotated

import typer

from splitglm_cli import (
    chat,
    cloud_config,
    cloud_serve,
    demo,
    doctor,
    keys,
    load,
    ls,
    plan,
    profile,
    ps,
    pull,
    replay,
    rm,
    run,
    show,
    sim,
    top,
)
from splitglm_core.version import VERSION

app = typer.Typer(
    help="Run a GLM-family language model on this device and in a cloud at once; what travels is encrypted.",
    epilog="Exit codes and settings: docs/cli.md. Most flags can also be set as SPLITGLM_* variables.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
cloud_app = typer.Typer(help="The cloud's half.", rich_markup_mode=None)
keys_app = typer.Typer(help="Identity keys, pins and pairing.", rich_markup_mode=None)
sim_app = typer.Typer(help="Simulated studies: which strategy is best where.", rich_markup_mode=None)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"splitglm {VERSION}")
        raise typer.Exit


def _help_without_verb(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    _help_without_verb(context)


app.command("pull")(pull.pull)
app.command("ls")(ls.ls)
app.command("show")(show.show)
app.command("rm")(rm.rm)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("plan")(plan.plan)
app.command("profile")(profile.profile)
app.command("replay")(replay.replay)
cloud_app.command("serve")(cloud_serve.serve)
cloud_app.command("config")(cloud_config.config)
cloud_app.callback(invoke_without_command=True)(_help_without_verb)
app.add_typer(cloud_app, name="cloud")
keys_app.command("show")(keys.show)
keys_app.command("pin")(keys.pin)
keys_app.command("pins")(keys.pins)
keys_app.command("unpin")(keys.unpin)
keys_app.command("pair")(keys.pair)
keys_app.callback(invoke_without_command=True)(_help_without_verb)
app.add_typer(keys_app, name="keys")
app.command("ps")(ps.ps)
app.command("top")(top.top)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.command("load")(load.load)
sim_app.command("run")(sim.run)
sim_app.command("compare")(sim.compare)
sim_app.command("list")(sim.list_all)
sim_app.callback(invoke_without_command=True)(_help_without_verb)
app.add_typer(sim_app, name="sim")
