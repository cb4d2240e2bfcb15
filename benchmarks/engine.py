"""Goal S8: what it costs that every session enters the model at a layer of its own, and what batching gains.

32 sessions decode, each token one row. Three ways to place their backs on a model of N layers (N even):

* one cut: every back is [N/2, N).
* random cuts: sessions in pairs with backs [s, N) and [N - s, N), s uniform in [1, N): a pair computes N layers per
  token whatever s is, so both ways compute exactly 16 N row-layers and 32 rows of the head per round of tokens.
* one at a time: the sessions with the random cuts, each decoding alone, one after the other.

And for U-shape, without the head: every back [N/4, N/4 + N/2) against windows [s, s + N/2), s uniform in [1, N/2].

First the engine alone in this process, with the real runner; then the whole service, one process each for cloud and
device. Variants take turns within a round; ratios are taken within a round. Every session begins a round with the same
number of positions in its cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from random_model import SHAPES, ensure_checkpoint
from report import markdown_table, spread, write_report
from step_clients import Task, by_asyncio

from splitglm_cli.cloud_process import CloudProcess
from splitglm_cloud.engine.engine import Engine
from splitglm_cloud.engine.events import Event, Owner
from splitglm_cloud.execution.building import build
from splitglm_cloud.execution.facts import EngineSpec
from splitglm_core.plan import Arm, Codec, HeadSide, Precision, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_core.shapes import ModelShape
from splitglm_edge.connection import CloudAddress
from splitglm_glm.opening import open_checkpoint
from splitglm_glm.store import ModelStore
from splitglm_sims.load.rows import RowBank
from splitglm_sims.load.stream import Target
from splitglm_wire.cloud import Configure, Output
from splitglm_wire.frames import Reply, Rows, Step

ONE, RANDOM, ALONE = "one cut", "random cuts", "one at a time, random cuts"
WINDOW, WINDOWS = "one window", "random windows"


@dataclass(frozen=True, slots=True)
class Variant:
    """Plans of the sessions, and whether they decode together."""

    name: str
    plans: tuple[SplitPlan, ...]
    together: bool = True


def variants(layers: int, sessions: int, seed: int) -> list[Variant]:
    """The five ways, for one seed of the cuts."""
    if layers % 2 or sessions % 2:
        raise SystemExit("this comparison needs an even number of layers and of sessions")
    rng = np.random.default_rng(seed)
    first = [int(s) for s in rng.integers(1, layers, sessions // 2)]
    cuts = [s for cut in first for s in (cut, layers - cut)]
    starts = [int(s) for s in rng.integers(1, layers // 2 + 1, sessions)]
    split = tuple(_plan(layers, s, layers, HeadSide.CLOUD) for s in cuts)
    return [
        Variant(ONE, (_plan(layers, layers // 2, layers, HeadSide.CLOUD),) * sessions),
        Variant(RANDOM, split),
        Variant(ALONE, split, together=False),
        Variant(WINDOW, (_plan(layers, layers // 4, layers // 4 + layers // 2, HeadSide.DEVICE),) * sessions),
        Variant(WINDOWS, tuple(_plan(layers, s, s + layers // 2, HeadSide.DEVICE) for s in starts)),
    ]


def _plan(layers: int, s: int, t: int, head: HeadSide) -> SplitPlan:
    return SplitPlan(layers=layers, s=s, t=t, head=head, codec=Codec.BF16)


class Sessions:
    """Sessions of one variant on an engine; each step's answer brings its next step."""

    def __init__(
        self, engine: Engine, events: list[tuple[int, Event]], variant: Variant, first: int, prompt: int
    ) -> None:
        self._engine = engine
        self._events = events
        self._variant = variant
        self._keys = range(first, first + len(variant.plans))
        self._prompt = prompt
        self._seq = 0
        self._length: dict[int, int] = {}

    def decode(self, bank: RowBank, tokens: int) -> float:
        """Seconds in which every session decodes ``tokens`` tokens after its prompt; then they are forgotten."""
        for key, plan in zip(self._keys, self._variant.plans, strict=True):
            context = self._prompt + tokens + 1
            config = Configure(plan, SamplingParams(), (), (), context, 0, 0)
            self._engine.configure(key, config, Owner(tenant=str(key)))
            self._length[key] = 0
            self._step(bank, key, self._prompt, Reply.ACK)
        self._run(bank, dict.fromkeys(self._keys, 0))
        started_s = time.perf_counter()
        groups = [list(self._keys)] if self._variant.together else [[key] for key in self._keys]
        for group in groups:
            for key in group:
                self._one(bank, key)
            self._run(bank, dict.fromkeys(group, tokens - 1))
        seconds = time.perf_counter() - started_s
        for key in self._keys:
            self._engine.drop(key)
        return seconds

    def _run(self, bank: RowBank, left: dict[int, int]) -> None:
        """Turn the engine until every session's step has ended and brought its ``left`` next ones."""
        open_steps = len(left)
        while open_steps:
            self._engine.turn()
            for key, event in self._events:
                if not isinstance(event, Output):
                    raise SystemExit(f"session {key} got no output: {event}")
                if left[key]:
                    left[key] -= 1
                    self._one(bank, key)
                else:
                    open_steps -= 1
            self._events.clear()

    def _one(self, bank: RowBank, key: int) -> None:
        ushape = self._variant.plans[key - self._keys.start].arm is Arm.USHAPE
        self._step(bank, key, 1, Reply.LAST_HIDDEN if ushape else Reply.TOKEN)

    def _step(self, bank: RowBank, key: int, rows: int, reply: Reply) -> None:
        self._seq += 1
        base = self._length[key]
        step = Step(
            handle=1,
            fence=1,
            seq=self._seq,
            base=base,
            rows_kind=Rows.HIDDEN,
            rows=rows,
            reply=reply,
            generate=int(reply is Reply.TOKEN),
            payload=bank.payload(Codec.BF16, base, rows),
        )
        self._engine.submit(key, step)
        self._length[key] = base + rows


def engine_alone(args: argparse.Namespace, model: str) -> tuple[str, ModelShape]:
    """Tokens per second of every variant on an engine in this process."""
    built = build(EngineSpec(model=model, precision=args.precision, threads=args.threads))
    shape = built.runner.shape
    bank = RowBank.random(shape.hidden, seed=1)
    events: list[tuple[int, Event]] = []
    engine = built.make_engine(lambda session, event: events.append((session, event)))
    rates: dict[str, list[float]] = {}
    for round_ in range(args.rounds + 1):
        for variant in variants(shape.layers, args.sessions, seed=round_):
            seconds = Sessions(engine, events, variant, 1, args.prompt).decode(bank, args.tokens)
            if round_:  # the first one touches every weight and page for the first time
                rates.setdefault(variant.name, []).append(args.sessions * args.tokens / seconds)
    engine.close()
    return _table(rates), shape


def whole_service(args: argparse.Namespace, model: str) -> str:
    """The same through gRPC and the secure channel: a client process with all sessions on one stream."""
    checkpoint = open_checkpoint(model, ModelStore())
    shape = checkpoint.config.shape
    row = np.random.default_rng(1).standard_normal((1, shape.hidden), np.float32)
    rates: dict[str, list[float]] = {}
    arguments = ("--precision", args.precision.value, "--threads", str(args.threads))
    with CloudProcess(model, arguments=arguments) as cloud:
        where = CloudAddress(address=cloud.address, key=cloud.key)
        target = Target(address=cloud.address, fingerprint=checkpoint.fingerprint, trust=where.trust())
        for round_ in range(args.rounds + 1):
            for variant in variants(shape.layers, args.sessions, seed=round_):
                groups = [variant.plans] if variant.together else [(plan,) for plan in variant.plans]
                seconds = args.seconds / len(groups)
                tokens = sum(
                    len(by_asyncio(target, Task(plans=plans, row=row, steps_per_s=None, seconds=seconds)).total)
                    for plans in groups
                )
                if round_:
                    rates.setdefault(variant.name, []).append(tokens / args.seconds)
    return _table(rates)


def _table(rates: dict[str, list[float]]) -> str:
    def over(name: str, base: str) -> str:
        return spread([a / b for a, b in zip(rates[name], rates[base], strict=True)], 2)

    rows = [
        [ONE, spread(rates[ONE]), "1", over(ONE, ALONE)],
        [RANDOM, spread(rates[RANDOM]), over(RANDOM, ONE), over(RANDOM, ALONE)],
        [ALONE, spread(rates[ALONE]), "", "1"],
        [WINDOW, spread(rates[WINDOW]), "1", ""],
        [WINDOWS, spread(rates[WINDOWS]), over(WINDOWS, WINDOW), ""],
    ]
    return markdown_table(["sessions", "tokens/s", "over one cut", "over one at a time"], rows)


@contextmanager
def models(args: argparse.Namespace) -> Iterator[list[str]]:
    """What to serve: names of the store, and random checkpoints of a published shape."""
    with tempfile.TemporaryDirectory() as scratch:
        yield [
            str(ensure_checkpoint(Path(scratch) / name, SHAPES[name]).directory) if name in SHAPES else name
            for name in args.models
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["smollm2-135m"], help=f"of the store, or {', '.join(SHAPES)}")
    parser.add_argument("--precision", type=Precision, default=Precision.INT8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64, help="positions in every cache at the start of a round")
    parser.add_argument("--tokens", type=int, default=16, help="of each session in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each variant and round through the service")
    parser.add_argument("--no-service", action="store_true", help="only the engine")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, few tokens, no result file")
    args = parser.parse_args()
    if args.smoke:
        args.models, args.rounds, args.tokens, args.sessions, args.seconds = ["tiny-even"], 1, 4, 8, 0.5
    sections = []
    with models(args) as names:
        for title, model in zip(args.models, names, strict=True):
            alone, shape = engine_alone(args, model)
            sections += [
                f"## {title}: the engine alone",
                f"{shape.layers} layers of width {shape.hidden}, {args.precision.value}, {args.threads} compute "
                f"thread(s), {args.sessions} sessions with {args.prompt} positions each, {args.tokens} tokens of each "
                f"per round. Median (range) of {args.rounds} rounds with other cuts each.",
                alone,
            ]
            if not args.no_service:
                sections += [
                    f"## {title}: through the service",
                    f"All sessions on one stream of one client process, caches empty at the start, {args.seconds:g} s "
                    "per variant and round; one at a time shares that time among the sessions.",
                    whole_service(args, model),
                ]
    packages = ("splitglm", "numpy", "onnxruntime", "grpcio", "cryptography")
    write_report("engine", "S8: cuts of their own in one batch", sections, packages=packages, write=not args.smoke)


if __name__ == "__main__":
    main()
