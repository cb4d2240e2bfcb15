"""``splitglm doctor``: what this machine has, and whether a cloud can be reached and trusted."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from splitglm_cli import options
from splitglm_core.errors import SplitGlmError, status_of


def doctor(
    cloud: options.Cloud = None,
    cloud_key: options.CloudKey = None,
    trust_first_use: options.TrustFirstUse = False,
    psk_file: options.PskFile = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Model to meet the cloud with. Default: one that is stored.")
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Report versions, processor, memory, runtime, store and, with --cloud, reachability. Paste it into bug reports."""
    from splitglm_cli.machine_facts import machine_facts
    from splitglm_cli.opening import CloudOptions

    where = CloudOptions(address=cloud, key=cloud_key, trust_first_use=trust_first_use, psk_file=psk_file).resolve()
    report: dict[str, Any] = machine_facts()
    code = 0
    if where is not None:
        from splitglm_cli.cloud_facts import cloud_facts

        try:
            report["cloud"] = cloud_facts(where, model)
        except SplitGlmError as error:
            report["cloud"] = {"address": where.address, "problem": error.one_line()}
            code = status_of(error).exit_code
    if as_json:
        print(json.dumps(report))
    else:
        from splitglm_cli.text_table import text_facts

        print(text_facts([(name, _words(value)) for name, value in report.items()]))
    if code:
        raise typer.Exit(code)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_words(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
