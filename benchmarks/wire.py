"""The wire's cost per token, and what it costs to say no: ``python benchmarks/wire.py``.

Everything runs in this process on one thread: no socket, no gRPC. Refusals are timed one by one, after a warm-up, rows
taking turns in rounds; encode, decode, seal and open are timed over a whole payload and divided by its tokens.
"""

from __future__ import annotations

import argparse
import itertools
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from report import markdown_table, write_report

from splitglm_core.errors import SplitGlmError
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_security.channel import Channel
from splitglm_wire import codec, framing
from splitglm_wire.actions import Output, Send, Submit
from splitglm_wire.cloud import CloudSession
from splitglm_wire.frames import Error, Open, Reply, Result, Rows, Step

HIDDEN_SIZES = (576, 2048, 4096)
ROUNDS = 20


def hidden_states(rows: int, hidden: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.normal(0, 3, (rows, hidden)).astype(np.float32)


def step_of(payload: bytes, rows: int, *, seq: int = 1, base: int = 0, reply: Reply = Reply.ACK) -> Step:
    return Step(
        handle=1,
        fence=1,
        seq=seq,
        base=base,
        rows_kind=Rows.HIDDEN,
        rows=rows,
        reply=reply,
        generate=0,
        payload=payload,
    )


def open_session(hidden: int) -> tuple[CloudSession, Step]:
    """A cloud session with one decode step applied, and the step that may follow."""
    session = CloudSession(session_id=bytes(16), hidden=hidden)
    plan = SplitPlan(layers=40, s=10, t=30, head=HeadSide.DEVICE, codec=Codec.BF16)
    session.on_open(
        Open(
            handle=1,
            session_id=bytes(16),
            fence=1,
            request=1,
            plan=plan,
            context=4096,
            keep=0,
            sampling=SamplingParams(),
        )
    )
    first = step_of(bytes(2 * hidden), 1)
    session.on_step(first)
    session.on_output(Output(1, 0, b"", True))
    return session, replace(first, seq=2, base=1)


def refusals(hidden: int) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """(where, what, call that must refuse)."""
    good = framing.encode(step_of(bytes(2 * hidden), 1))
    header = struct.Struct("<BBHII")
    changed = bytearray(good)
    changed[-1] ^= 1
    for what, data in {
        "cut short": good[:-64],
        "declares 4 GiB": header.pack(2, 0, 0, 1, 2**32 - 1) + good[12:],
        "unknown kind": b"\x63" + good[1:],
        "65,535 rows": good[:26] + b"\xff\xff" + good[28:],
        "padding not zero": bytes(changed),
    }.items():
        yield "frame", what, lambda data=data: framing.decode(data)
    session, step = open_session(hidden)
    for what, bad in {
        "older fence": replace(step, fence=0),
        "sequence gap": replace(step, seq=4),
        "position gap": replace(step, base=9),
        "beyond the context": replace(step, rows=4096, payload=bytes(2 * hidden)),
        "payload of another shape": replace(step, payload=bytes(2 * hidden - 1)),
        "other kind of rows": replace(step, rows_kind=Rows.IDS),
    }.items():
        yield "session", what, lambda bad=bad: refuse_step(session, bad)
    for what, shape in {"wrong size": (1, hidden + 1), "no rows": (0, hidden), "2^31 rows": (2**31, hidden)}.items():
        payload, (rows, width) = bytes(2 * hidden), shape
        yield (
            "codec",
            what,
            lambda rows=rows, width=width, payload=payload: codec.decode(
                payload, Codec.BF16, rows=rows, hidden=width, base=1
            ),
        )
    for rows in (1, codec.max_rows(Codec.BF16, hidden)):
        x = hidden_states(rows, hidden)
        x[-1, -1] = np.nan
        poison = (x.view(np.uint32) >> 16).astype("<u2").tobytes()
        yield (
            "codec",
            f"NaN in the last of {rows} rows",
            lambda rows=rows, poison=poison: codec.decode(poison, Codec.BF16, rows=rows, hidden=hidden, base=1),
        )


def refuse_step(session: CloudSession, step: Step) -> None:
    actions = session.on_step(step)
    if not (len(actions) == 1 and isinstance(actions[0], Send) and isinstance(actions[0].frame, Error)):
        raise SystemExit(f"the session took a bad step: {actions}")


def time_refusal(call: Callable[[], object], repeats: int) -> list[float]:
    out = []
    for _ in range(repeats):
        start = time.perf_counter()
        try:
            call()
        except SplitGlmError:
            pass
        out.append((time.perf_counter() - start) * 1e6)
    return out


def refusal_table(repeats: int) -> str:
    cases = list(refusals(4096))
    spent: list[list[float]] = [[] for _ in cases]
    for _ in range(ROUNDS):
        for times, (_, _, call) in zip(spent, cases, strict=True):
            times.extend(time_refusal(call, max(2, repeats // ROUNDS))[1:])
    rows = []
    for times, (where, what, _) in zip(spent, cases, strict=True):
        median, late = np.percentile(times, [50, 95])
        rows.append((where, what, f"{median:.1f}", f"{late:.1f}"))
    return markdown_table(("refused by", "what", "median us", "p95 us"), rows)


def per_token(call: Callable[[], object], tokens: int, repeats: int) -> float:
    """Median microseconds per token of ``call``."""
    call()
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        spent.append((time.perf_counter() - start) * 1e6 / tokens)
    return float(np.median(spent))


def codec_table(repeats: int) -> str:
    rows = []
    for hidden in HIDDEN_SIZES:
        for kind in Codec:
            cells: list[object] = [hidden, kind.value, codec.row_bytes(kind, hidden)]
            for count in (1, min(128, codec.max_rows(kind, hidden))):
                x = hidden_states(count, hidden)
                payload = codec.encode(x, kind, base=1)
                n = max(5, repeats // (1 if count == 1 else 20))
                to_bytes = partial(codec.encode, x, kind, base=1)
                to_floats = partial(codec.decode, payload, kind, rows=count, hidden=hidden, base=1)
                cells += [count, f"{per_token(to_bytes, count, n):.1f}", f"{per_token(to_floats, count, n):.1f}"]
            rows.append(cells)
    head = ("hidden", "codec", "bytes", "rows", "encode us", "decode us", "rows", "encode us", "decode us")
    return markdown_table(head, rows)


def channels() -> tuple[Channel, Channel]:
    keys = (bytes(range(32)), bytes(range(32, 64)))
    both = (
        Channel(initiator=side, keys=keys, handshake_hash=bytes(32), prologue=b"benchmark") for side in (True, False)
    )
    return next(both), next(both)


def record_times(frame: Step | Result, tokens: int, repeats: int) -> tuple[int, list[float]]:
    """Record bytes and median microseconds per token of frame, seal, open, unframe."""
    device, cloud = channels()
    spent: list[list[float]] = [[], [], [], []]
    size = 0
    for _ in range(repeats):
        if device.needs_key_update:
            cloud.open(device.key_update())
        marks = [time.perf_counter()]
        data = framing.encode(frame)
        marks.append(time.perf_counter())
        record = device.seal(data)
        marks.append(time.perf_counter())
        opened = cloud.open(record)
        marks.append(time.perf_counter())
        framing.decode(opened.payload)
        marks.append(time.perf_counter())
        size = len(record)
        for times, (start, stop) in zip(spent, itertools.pairwise(marks), strict=True):
            times.append((stop - start) * 1e6 / tokens)
    return size, [float(np.median(times)) for times in spent]


def record_table(repeats: int) -> str:
    token = Result(
        handle=1,
        fence=1,
        seq=1,
        index=0,
        last=True,
        reply=Reply.TOKEN,
        kv_length=1,
        rows=1,
        queue_us=0,
        compute_us=0,
        payload=bytes(4),
    )
    cases: list[tuple[str, Step | Result, int]] = [("token down", token, 1)]
    for hidden in HIDDEN_SIZES:
        for kind in (Codec.BF16, Codec.INT8):
            for count in (1, min(128, codec.max_rows(kind, hidden))):
                payload = bytes(codec.payload_bytes(kind, count, hidden, 1))
                cases.append(
                    (f"{kind.value}, hidden {hidden}, {count} rows up", step_of(payload, count, base=1), count)
                )
    rows = []
    for what, frame, count in cases:
        size, times = record_times(frame, count, max(5, repeats // (1 if count == 1 else 20)))
        rows.append((what, f"{size:,}", *(f"{t:.1f}" for t in times)))
    return markdown_table(("record", "bytes", "frame us", "seal us", "open us", "unframe us"), rows)


def session_table(repeats: int) -> str:
    """One decode step through the cloud's state machine: the step in, its result out."""
    rows = []
    for hidden in HIDDEN_SIZES:
        session, step = open_session(hidden)
        step = replace(step, reply=Reply.LAST_HIDDEN)
        out = bytes(2 * hidden)
        spent = []
        for _ in range(min(repeats, 4000)):
            start = time.perf_counter()
            if session.on_step(step) != [Submit(step)]:
                raise SystemExit("the session refused a good step")
            session.on_output(Output(step.seq, 1, out, True))
            spent.append((time.perf_counter() - start) * 1e6)
            step = replace(step, seq=step.seq + 1, base=step.base + 1)
        rows.append((hidden, f"{np.median(spent):.1f}", f"{np.percentile(spent, 95):.1f}"))
    return markdown_table(("hidden", "median us", "p95 us"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--smoke", action="store_true", help="a few repeats, no result file")
    args = parser.parse_args()
    repeats = 40 if args.smoke else args.repeats
    sections = [
        "## What a refusal costs\n\nHidden size 4096, bf16. `session` includes making the error frame.\n\n"
        + refusal_table(repeats),
        "## Codecs, microseconds per token\n\nOne decode row, then a prefill chunk.\n\n" + codec_table(repeats),
        "## Records, microseconds per token\n\nFrame to bytes, sealed, opened, bytes to frame.\n\n"
        + record_table(repeats),
        "## A decode step through the cloud's session machine\n\n" + session_table(repeats),
    ]
    packages = ("splitglm", "numpy", "cryptography")
    write_report("wire", "Cost of the wire", sections, packages=packages, write=not args.smoke)


if __name__ == "__main__":
    main()
