"""``splitglm load``: open-loop load on a cloud, by a scenario or by a few flags."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitglm_cli import options
from splitglm_core.errors import InputError
from splitglm_core.plan import Arm

if TYPE_CHECKING:
    from splitglm_sims.load.run import Options
    from splitglm_sims.load.scenario import Scenario

_DEFAULT_RATE_PER_S = 1.0
_DEFAULT_SECONDS = 30.0


def _print_scenarios(wanted: bool) -> None:
    if not wanted:
        return
    from splitglm_cli.text_table import text_facts
    from splitglm_sims.load.scenario import load_scenario, shipped

    print(text_facts([(name, load_scenario(name).about) for name in shipped()]))
    raise typer.Exit


def load(
    model: options.Model,
    scenario: Annotated[
        str | None,
        typer.Argument(metavar="[SCENARIO]", help="A shipped scenario (--list names them) or a TOML file."),
    ] = None,
    list_scenarios: Annotated[
        bool, typer.Option("--list", callback=_print_scenarios, is_eager=True, help="Name the shipped scenarios.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="PER_S", help="Without a scenario: sessions per second.")
    ] = None,
    sessions: Annotated[
        int | None, typer.Option("--sessions", min=1, help="Without a scenario: how many in all, on average.")
    ] = None,
    arm: Annotated[
        Arm, typer.Option("--arm", help="Without a scenario: split, ushape or cloud, at random cuts.")
    ] = Arm.SPLIT,
    prompt_rows: Annotated[int, typer.Option("--prompt-rows", min=1, help="Without a scenario: prompt length.")] = 32,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Without a scenario: answers per session.")] = 16,
    think: Annotated[
        float, typer.Option("--think", metavar="SECONDS", min=0.0, help="Without a scenario: mean pause of a device.")
    ] = 0.01,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Another schedule than the scenario's.")] = None,
    generators: Annotated[int | None, typer.Option("--generators", min=1, help="Processes that send.")] = None,
    retries: Annotated[int | None, typer.Option("--retries", min=0, help="Try refused sessions again.")] = None,
    cores: Annotated[
        str | None, typer.Option("--cores", metavar="A,B", help="Processor cores for the generators.")
    ] = None,
    rows_file: Annotated[
        Path | None,
        typer.Option("--rows-file", metavar="FILE", help="Recorded hidden states (raw float32) instead of noise."),
    ] = None,
    cloud: options.Cloud = None,
    cloud_key: options.CloudKey = None,
    trust_first_use: options.TrustFirstUse = False,
    psk_file: Annotated[
        list[Path] | None,
        typer.Option("--psk-file", metavar="FILE", help="Pairing code. Repeatable: simulated devices take turns."),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Send sessions to a cloud that serves MODEL, by a schedule that no answer can slow down, and say what came of it.

    Only the facts of MODEL are read, never its weights: the hidden states are noise. Use it on your own clouds.
    """
    from splitglm_cli.opening import CloudOptions, read_psk

    where = CloudOptions(address=cloud, key=cloud_key, trust_first_use=trust_first_use).resolve()
    if where is None:
        raise InputError("a load needs a cloud", "name it with --cloud HOST:PORT")
    chosen = _chosen(scenario, rate, sessions, arm, prompt_rows, tokens, think)
    changes: dict[str, Any] = {"seed": seed, "generators": generators, "retries": retries}
    chosen = dataclasses.replace(chosen, **{name: value for name, value in changes.items() if value is not None})
    from splitglm_glm.opening import open_checkpoint
    from splitglm_glm.store import ModelStore
    from splitglm_sims.load.generator import Model
    from splitglm_sims.load.result import HEADER, table, to_json, verdict
    from splitglm_sims.load.run import run_scenario
    from splitglm_sims.load.stream import Target

    checkpoint = open_checkpoint(model, ModelStore())
    shape = checkpoint.config.shape
    psks = tuple(psk for path in psk_file or () if (psk := read_psk(path)) is not None)
    target = Target(address=where.address, fingerprint=checkpoint.fingerprint, trust=where.trust(), psks=psks)
    facts = Model(layers=shape.layers, hidden=shape.hidden, vocab=shape.vocab, fingerprint=checkpoint.fingerprint.hex())
    result = run_scenario(chosen, target, facts, _options(cores, rows_file, quiet))
    if as_json:
        print(json.dumps(to_json(result)))
        return
    from splitglm_cli.text_table import text_table

    print(text_table(HEADER, table(result)))
    print(verdict(result))


def _chosen(
    name: str | None,
    rate: float | None,
    sessions: int | None,
    arm: Arm,
    prompt_rows: int,
    tokens: int,
    think_s: float,
) -> Scenario:
    """The scenario that is named, or one of a single phase and kind from the flags."""
    from splitglm_sims.load.scenario import Kind, Phase, Scenario, load_scenario

    if name is not None:
        if rate is not None or sessions is not None:
            raise InputError("a scenario states its own rates", "leave out --rate and --sessions, or the scenario")
        return load_scenario(name)
    rate = _DEFAULT_RATE_PER_S if rate is None else rate
    if rate <= 0.0:
        raise InputError("--rate must be positive")
    seconds = _DEFAULT_SECONDS if sessions is None else sessions / rate
    kind = Kind(
        name=arm.value,
        arm=arm,
        prompt_rows=(prompt_rows, prompt_rows + 1),
        tokens=(tokens, tokens + 1),
        think_s=think_s,
    )
    return Scenario(name="flags", phases=(Phase(name=f"{rate:g}/s", seconds=seconds, rate_per_s=rate),), kinds=(kind,))


def _options(cores: str | None, recorded: Path | None, quiet: bool) -> Options:
    from splitglm_sims.load.run import Options

    def say(what: str) -> None:
        if not quiet:
            print(what, file=sys.stderr, flush=True)

    words = [] if cores is None else cores.split(",")
    if not all(word.isdecimal() for word in words):
        raise InputError(f"--cores {cores!r} is not a list of core numbers", "write for example --cores 1,2")
    if words:
        import os

        if not hasattr(os, "sched_setaffinity") or not {int(word) for word in words} <= os.sched_getaffinity(0):
            raise InputError(f"--cores {cores!r} names cores that this process may not use")
    return Options(cores=tuple(int(word) for word in words), recorded=recorded, progress=say)
