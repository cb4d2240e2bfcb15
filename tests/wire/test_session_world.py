"""Thousands of seeded worlds keep every invariant, and one-line mutants of the protocol do not survive them."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import EnumType
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
import session_ends
import session_pair
import session_world
import test_session_pair as pairs
import test_session_rules as rules
from session_world import World

from splitglm_wire import answer, cloud, device, pending

WORLDS = 2000
BATCH = 250


@pytest.mark.parametrize("first", range(0, WORLDS, BATCH))
def test_worlds_end_with_every_token_right(first: int) -> None:
    outcomes = {}
    for seed in range(first, first + BATCH):
        try:
            outcomes[seed] = World(seed).run()
        except Exception as error:
            raise AssertionError(f"world {seed}: {error}") from error
    # The worlds are worth something only if things happen in them.
    assert sum(outcome.reconnects for outcome in outcomes.values()) > BATCH
    assert sum(outcome.rebuilds for outcome in outcomes.values()) > BATCH // 8
    assert sum(outcome.refusals for outcome in outcomes.values()) > BATCH // 4
    assert sum(outcome.retried for outcome in outcomes.values()) > BATCH // 8


@pytest.mark.slow
def test_many_more_worlds() -> None:
    for seed in range(WORLDS, WORLDS + 20_000):
        try:
            World(seed).run()
        except Exception as error:
            raise AssertionError(f"world {seed}: {error}") from error


def test_a_world_is_a_function_of_its_seed() -> None:
    for seed in range(40):
        assert World(seed).run() == World(seed).run()
    assert len({World(seed).run().digest for seed in range(40)}) == 40


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one line: ``old``, which occurs once in the module, becomes ``new``."""

    name: str
    module: ModuleType
    old: str
    new: str


MUTANTS = [
    # The cloud
    Mutant("cloud: fence of a step not checked", cloud, "step.fence != self.fence or self._wait", "self._wait"),
    Mutant("cloud: sequence number not checked", cloud, "if step.seq != seq + 1:", "if False:"),
    Mutant("cloud: base not checked", cloud, "if step.base != length:", "if False:"),
    Mutant("cloud: the last step again is applied again", cloud, "return self._replay(step)", "pass"),
    Mutant("cloud: replay of another step's reply", cloud, "or digest(step) != answer.step_digest", ""),
    Mutant("cloud: sampler forgets what a replay delivers", cloud, "if answer.history != self._history:", "if False:"),
    Mutant("cloud: replay under the old fence", cloud, "handle=self._handle, fence=self.fence)) for", ")) for"),
    Mutant("cloud: failed step stays in the cache", cloud, "[Cut(self.kv_length)]\n        if", "[]\n        if"),
    Mutant("cloud: truncate ignored", cloud, "if frame.length < self.kv_length:", "if False:"),
    Mutant("cloud: keep ignored", cloud, "if frame.keep < self.kv_length:", "if False:"),
    Mutant(
        "cloud: kept positions told wrong", cloud, "have=self.kv_length,\n            last", "have=0,\n            last"
    ),
    Mutant("cloud: waiting open dropped", cloud, "self._attach(self._waiting_open) if self._waiting_open else", ""),
    Mutant(
        "cloud: open while a step runs", cloud, "if self._running is not None:\n            # W", "if False:\n  # W"
    ),
    Mutant(
        "cloud: parts go to a stream that opens",
        cloud,
        "[Send(part)] if self._waiting_open is None else []",
        "[Send(part)]",
    ),
    Mutant("cloud: queue survives its stream", cloud, "self._clear_queue()\n        return", "return"),
    Mutant("cloud: queue survives a new open", cloud, "self._clear_queue()\n        if", "if"),
    Mutant("cloud: queue survives a failure", cloud, "void = self._clear_queue()", "void = list(self._queue)"),
    Mutant("cloud: steps behind a failure not answered", cloud, "for step in void]", "for step in void[:0]]"),
    Mutant("cloud: older open accepted", cloud, "if frame.fence <= self.newest_fence:", "if False:"),
    Mutant("cloud: other reply's answer kept", cloud, "old.request != frame.request", "False"),
    Mutant(
        "cloud: other cut's answer kept after keep", cloud, "frame.keep\n            self._answer = None", "frame.keep"
    ),
    Mutant(
        "cloud: running step ends when its stream does",
        cloud,
        "self._clear_queue()\n        return [A",
        "self._running = None\n        return [A",
    ),
    Mutant("cloud: cancel of a queued step dropped", cloud, "self._cancelled_seq = frame.seq", "pass"),
    Mutant("cloud: cancel ignored", cloud, "and frame.seq == self._running.seq", "and False"),
    Mutant(
        "cloud: evicted positions still counted",
        cloud,
        "        self.kv_length = 0\n        if self._r",
        "        if self._r",
    ),
    Mutant(
        "cloud: evicted step not answered",
        cloud,
        "return self.on_failure(self._running.seq",
        "self._running = None; return []; (0",
    ),
    Mutant("cloud: fence of the last step not kept", cloud, "length, step.seq, step.fence", "length, step.seq, 1"),
    Mutant("answer: one token too few", answer, "len(known) - self.first)", "len(known) - self.first + 1)"),
    Mutant("answer: length of a replayed part", answer, "self.history[self.first + index]", "self.history[index]"),
    # The device
    Mutant("device: older fences heard", device, " or frame.fence != self.fence:", ":"),
    Mutant("device: dead streams heard", device, "if self.state in _DEAF or frame", "if frame"),
    Mutant(
        "device: confirmed when sent", device, "self._sent += rows", "self._sent += rows; self.confirmed = self._sent"
    ),
    Mutant("device: keep not taken over", device, "self.confirmed = self._sent = keep", "pass"),
    Mutant("device: stale replica believed", device, "0 if frame.step_fence < self._answered_fence else ", ""),
    Mutant("device: answered under the stream's fence", device, "= pending.step.fence", "= self.fence"),
    Mutant("device: gap not noticed when coming back", device, "if good < self.confirmed or (first", "if (first"),
    Mutant("device: lost beginning sent again", device, "first.parts and not known", "False"),
    Mutant("device: surplus positions not cut", device, "if have > self.confirmed:", "if False:"),
    Mutant("device: numbering not taken over", device, "self._seq = frame.last_seq\n", "pass\n"),
    Mutant(
        "device: one of many fetched from the cache", device, "and known and len(self._pending) == 1:", "and known:"
    ),
    Mutant(
        "device: cached reply by number only",
        device,
        "(first.step.seq, first.step.fence) == (frame.last_seq, frame.step_fence)",
        "first.step.seq == frame.last_seq",
    ),
    Mutant(
        "device: sent again under the old fence",
        device,
        "fence=self.fence, seq=self._seq)\n            frames",
        "seq=self._seq)\n            frames",
    ),
    Mutant("device: a refusal voids all", device, "if t >= first]", "]"),
    Mutant("device: a refusal voids one", device, "if t >= first]", "if t == first]"),
    Mutant("device: goes on after a refusal", device, "self.state = State.STALLED\n            if", "if"),
    Mutant("device: refused number not given back", device, "self._seq = frame.seq - 1", "pass"),
    Mutant("device: end of what was sent not set back", device, "else self.confirmed\n", "else self._sent\n"),
    Mutant("device: steps survive the session's end", device, "self._void(0, put_off=frame.resumable)", "pass"),
    Mutant("device: put off steps are lost", device, "self._pending.update(self._put_off)", "pass"),
    Mutant(
        "device: put off in the wrong order",
        device,
        "[*void.items(), *self._put_off.items()]",
        "[*self._put_off.items(), *void.items()]",
    ),
    Mutant("device: put off behind a failure", device, " if put_off else ()", ""),
    Mutant(
        "device: asks again before the rest is answered",
        device,
        "self._turned_away and not self._pending",
        "self._turned_away",
    ),
    Mutant(
        "device: what was put off has no length",
        device,
        "        self._sent = self._end()\n        self._open = r",
        "        self._open = r",
    ),
    Mutant(
        "device: put off steps outlive a new reply",
        device,
        "        self._forget_refused()\n        self.fence += 1\n        self._req",
        "        self.fence += 1\n        self._req",
    ),
    Mutant("device: generated length not taken over", device, "if pending.step.generate > 1:", "if False:"),
    Mutant("device: cancel lost with its stream", device, "if pending.cancelled:", "if False:"),
    Mutant("device: early answer to an open", device, "or self.state in (State.OPENING, State.REOPENING)", ""),
    Mutant("pending: parts twice delivered", pending, "new = frame.index == self.parts", "new = True"),
    Mutant("pending: reply index ignored", pending, " or frame.index > self.parts", ""),
    Mutant("pending: length not compared", pending, "frame.last and frame.kv_length != self._length(tokens)", "False"),
]


def killers() -> Iterator[Callable[[], object]]:
    """What a mutant must pass to survive: worlds, every rule's tests, and a choice of the exhaustive cuts."""
    for seed in range(60):
        yield World(seed).run
    for name, test in vars(rules).items():
        if name.startswith("test_"):
            yield from cases(test)
    for name, test in vars(pairs).items():
        if name.startswith("test_") and not hasattr(test, "pytestmark"):
            yield test
    for arm in pairs.ARMS:
        yield partial(pairs.test_a_stream_cut_anywhere_changes_no_token_and_costs_no_rebuild, arm, "udw")
        yield partial(pairs.test_a_replica_that_missed_something_is_not_believed, arm)
    yield partial(pairs.test_a_cancelled_generation_ends_early_and_both_sides_agree_how_far_it_went, "udw", 2)


def cases(test: Callable[..., object]) -> Iterator[Callable[[], object]]:
    """A test function with each of its parameters."""
    marks = [mark.args for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    names = [[name.strip() for name in mark[0].split(",")] if isinstance(mark[0], str) else mark[0] for mark in marks]
    for values in itertools.product(*(mark[1] for mark in marks)):
        arguments: dict[str, object] = {}
        for keys, value in zip(names, values, strict=True):
            arguments |= dict(zip(keys, value if len(keys) > 1 else (value,), strict=True))
        yield partial(test, **arguments)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_no_mutant_of_the_protocol_survives(mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(str(mutant.module.__file__)).read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1, "the mutant no longer fits the source"
    file = tmp_path / "mutant.py"
    file.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mutant", file)
    assert spec is not None
    assert spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutant", changed)
    spec.loader.exec_module(changed)
    defined = {
        name: own for name, own in vars(mutant.module).items() if own.__class__ in (type, EnumType, FunctionType)
    }
    for user in (answer, cloud, device, pending, session_ends, session_pair, session_world, pairs, rules):
        for name, own in defined.items():
            if own.__module__ == mutant.module.__name__ and vars(user).get(name) is own:
                monkeypatch.setattr(user, name, getattr(changed, name))
    for attempt in killers():
        try:
            attempt()
        except (Exception, pytest.fail.Exception):
            return
    pytest.fail(f"{mutant.name}: survived")


def test_without_a_change_all_that_kills_mutants_passes() -> None:
    """The gate means something only if the unchanged source passes everything that the mutants must."""
    count = 0
    for killer in killers():
        killer()
        count += 1
    assert count > 150
    assert len(MUTANTS) >= 50
