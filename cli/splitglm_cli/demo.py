"""``splitglm demo``: one edge-cloud conversation on this machine, by every kind of plan."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from splitglm_cli.demo_arms import DemoRow, demo_arms, run_arm
from splitglm_cli.options import Debug, Json
from splitglm_cli.progress import building, shown_progress
from splitglm_core.errors import InputError, InternalError, ModelNotFound
from splitglm_core.plan import Precision, Privacy

if TYPE_CHECKING:
    from splitglm_core.ranges import LayerRange
    from splitglm_edge import Agent

_LEAST_LAYERS: Final = 4
_PROMPT: Final = "Explain in two sentences why the sky is blue."
_WHAT_IS_ENCRYPTED: Final = (
    "Encrypted: all that travels between device and cloud, with keys that only these two processes hold.",
    "Not hidden from the cloud: whoever runs it can read the hidden states it computes on and reconstruct text from"
    " them (SECURITY.md); in cloud-only plans it gets the tokens themselves.",
    "Not sent: in split plans the prompt's ids; in U-shape plans the answer's ids neither; device only, nothing.",
)


def demo(
    model: Annotated[str, typer.Option("--model", help="Model in the store, or directory.")] = "smollm2-135m",
    prompt: Annotated[str, typer.Option("--prompt", help="The question.")] = _PROMPT,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=2, max=512, help="Longest answer.")] = 40,
    precision: Annotated[Precision, typer.Option("--precision", help="Weights on both sides.")] = Precision.INT8,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer one prompt on this device, in a cloud, and split between them, and compare.

    The cloud is a separate process on a free port of this machine's loopback interface. Afterwards it is gone.
    """
    started_s = time.perf_counter()
    out = sys.stderr if as_json else sys.stdout
    _provide(model, precision, out)
    from splitglm_cli.cloud_process import CloudProcess
    from splitglm_edge import Agent, CloudAddress

    with ExitStack() as stack:
        _say(out, "Starting the cloud as a second process. Both share this machine's cores, so each gets 1 thread.")
        # The one device here is to be told what it would tell itself: its rows are computed as it computes them.
        arguments = ("--threads", "1", "--precision", precision.value, "--no-exact-batches")
        cloud = stack.enter_context(CloudProcess(model, arguments=arguments))
        _say(out, f"The cloud (process {cloud.pid}, {cloud.runner}) listens at {cloud.address}.")
        _say(out, f"Pinned for this demo, as its own process told it to us: its identity key {cloud.key}.")
        _say(out, "(With a real cloud: compare with `splitglm keys show` there, then `splitglm keys pin` here.)")
        where = CloudAddress(address=cloud.address, key=cloud.key)
        agent = stack.enter_context(Agent.open(model, cloud=where, precision=precision, threads=1))
        _say(out, f"\n> {prompt}")
        default = _stream_default(agent, prompt, max_tokens, out)
        _say(out, "\nNow by fixed plans, each after a short warm-up:")
        rows = _compare(agent, prompt, max_tokens)
    agree = all(row.same_as_device for row in rows if row.arm.exact)
    total_s = time.perf_counter() - started_s
    if as_json:
        document = {
            "model": model,
            "prompt": prompt,
            "precision": precision.value,
            "threads_per_process": 1,
            "default": default,
            "arms": [row.as_dict() for row in rows],
            "exact_arms_agree": agree,
            "total_s": round(total_s, 3),
        }
        print(json.dumps(document), flush=True)
    else:
        _print_table(rows)
        for line in _WHAT_IS_ENCRYPTED:
            _say(out, line)
        _say(out, f"\n{total_s:.0f} seconds in all; the cloud process has ended.")
    if not agree:
        raise InternalError("a plan with an exact codec gave another answer than the device alone", "report it")


def _provide(model: str, precision: Precision, out: TextIO) -> None:
    """Bring the demo model into the store and build its graphs, where that was not done before."""
    from splitglm_core.ranges import LayerRange
    from splitglm_glm.opening import open_checkpoint, open_stack
    from splitglm_glm.pull import pull
    from splitglm_glm.smollm2 import NAME
    from splitglm_glm.store import ModelStore

    store = ModelStore()
    with shown_progress() as progress:
        try:
            store.find(model)
        except ModelNotFound:
            if model != NAME:
                raise
            _say(out, f"Fetching the model {model}, once ...")
            pull(model, store, progress=progress)
        checkpoint = open_checkpoint(model, store)
        layers = LayerRange(0, checkpoint.config.shape.layers)
        if len(layers) < _LEAST_LAYERS:
            raise InputError(f"the demo cuts a model at its quarters: {len(layers)} layers are too few")
        bars = building(progress, precision.value)
        # Here once, and not in both processes at the same time.
        open_stack(checkpoint, precision, layers=layers, embedding=True, head=True, store=store, progress=bars)
    _say(out, f"Model {model}: {len(layers)} layers, {precision.value} weights on both sides.")


def _stream_default(agent: Agent, prompt: str, max_tokens: int, out: TextIO) -> dict[str, object]:
    """Answer with the plan that the policy chooses for the default privacy, text appearing as it is made."""
    from splitglm_cli.terminal import printable

    with closing(agent.generate(prompt, max_tokens=max_tokens, privacy=Privacy.NO_TEXT)) as reply:
        for piece in reply:
            print(printable(piece), end="", file=out, flush=True)
    if reply.stats is None:
        raise InternalError("a reply ended without its account")
    _say(out, "\n\nThat was streamed by the plan that the policy chose for the default privacy, no-text:")
    for line in reply.stats.why.splitlines():
        _say(out, f"  {line}")
    return {"text": reply.text, "token_ids": reply.token_ids, "stats": reply.stats.as_dict()}


def _compare(agent: Agent, prompt: str, max_tokens: int) -> list[DemoRow]:
    rows: list[DemoRow] = []
    for arm in demo_arms(agent.checkpoint.config.shape.layers):
        rows.append(run_arm(agent, arm, prompt, max_tokens, rows[0].token_ids if rows else None))
    return rows


def _print_table(rows: list[DemoRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("arm", "device", "cloud", "codec"):
        table.add_column(heading, no_wrap=True)
    for heading in ("TTFT", "tok/s", "up", "down"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("same text?", no_wrap=True)
    for row in rows:
        device = [_layers(layers) for layers in (row.plan.front, row.plan.tail) if len(layers)]
        same = "yes" if row.same_as_device else f"first {row.same_tokens}/{len(first.token_ids)}"
        table.add_row(
            row.arm.name,
            " ".join(device) or "-",
            _layers(row.plan.back) if len(row.plan.back) else "-",
            row.arm.codec.value if row.arm.sends_hidden else "-",
            f"{1e3 * row.ttft_s:.0f} ms",
            f"{row.tokens_per_s:.1f}",
            f"{row.up_per_token:.0f}",
            f"{row.down_per_token:.0f}",
            "-" if row is first else same,
        )
    Console().print(table)
    tokens = f"{first.prompt_tokens} of the prompt and {len(first.token_ids)} of the answer"
    print(f"(up, down: bytes per token, over {tokens}; fp32 is exact, so its text must be the device's)\n")


def _layers(layers: LayerRange) -> str:
    return f"[{layers.start},{layers.stop})"


def _say(out: TextIO, text: str) -> None:
    print(text, file=out, flush=True)
