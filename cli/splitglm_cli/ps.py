"""``splitglm ps``: the clouds of this user on this machine, and the sessions of one."""

from __future__ import annotations

import json
import sys

import typer

from splitglm_cli.clouds import Pid, RuntimeDir, documents, found_servers, server_text, servers_text
from splitglm_cli.options import Debug, Json
from splitglm_cloud.status import ServerStatus
from splitglm_core.errors import SplitGlmError, status_of


def ps(pid: Pid = None, runtime_dir: RuntimeDir = None, as_json: Json = False, debug: Debug = False) -> None:
    """List the clouds that run here, or with PID one of them with its workers and sessions."""
    answers = found_servers(runtime_dir, pid)
    statuses = [answer for answer in answers if isinstance(answer, ServerStatus)]
    problems = [answer for answer in answers if isinstance(answer, SplitGlmError)]
    if as_json:
        print(json.dumps(documents(answers)))
    elif pid is not None:
        print("\n\n".join(server_text(status) for status in statuses))
    elif statuses:
        print(servers_text(statuses))
    elif not problems:
        print("no cloud of this user runs here; splitglm cloud serve MODEL starts one", file=sys.stderr)
    for problem in problems:
        print(f"splitglm: {problem.one_line()}", file=sys.stderr)
    if problems:
        raise typer.Exit(status_of(problems[0]).exit_code)
