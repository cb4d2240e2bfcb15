"""Both session machines together, every message boundary cut: the application sees one machine's tokens, once each."""

from __future__ import annotations

import itertools

import integer_model as model
import pytest
from session_ends import Turn
from session_pair import CHAT, Pair

from splitglm_wire.device import State
from splitglm_wire.frames import Cancel, ErrorCode, Open, Opened, Result, Step, Truncate

ARMS = tuple(model.PLANS)
ORDERS = ("udw", "wdu", "duw")
LONG = next(
    seed
    for seed in range(10_000)
    if all(len(model.reference(says, 40, seed)) == 40 for says in ([1, 2, 3, 4], [1, 2, 3], list(range(1, 9))))
)
"""A seed under which no stop token comes within forty tokens."""
SHORT = (Turn(keep=0, says=(1, 2, 3, 4, 5), max_tokens=3), Turn(keep=4, says=(9, 8), max_tokens=2))


@pytest.mark.parametrize(("chunk", "window"), [(3, 4), (1, 1), (2, 10), (50, 1)])
@pytest.mark.parametrize("order", ORDERS)
def test_every_arm_gives_the_tokens_of_one_machine(order: str, chunk: int, window: int) -> None:
    replies = []
    for arm in ARMS:
        pair = Pair(arm, order=order, chunk=chunk, window=window)
        pair.finish()
        assert (pair.driver.rebuilds, pair.driver.refusals) == (0, 0)
        replies.append(pair.driver.replies)
    assert all(reply == replies[0] for reply in replies)
    assert [len(reply) for reply in replies[0]] == [4, 3, 3]


def test_prefill_is_pipelined_without_waiting_for_the_open() -> None:
    pair = Pair("split", order="u", window=10)
    sent = [type(frame) for frame in pair.log]
    assert sent == [Open, Step, Step, Step], "8 tokens in chunks of 3, before anything came back"


def test_the_next_turn_keeps_what_both_turns_share() -> None:
    pair = Pair("split")
    pair.finish()
    opens = [frame for frame in pair.log if isinstance(frame, Open)]
    assert [frame.keep for frame in opens] == [0, 11, 5]
    bases = [frame.base for frame in pair.log if isinstance(frame, Step)]
    assert bases.count(0) == 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("arm", ARMS)
def test_a_stream_cut_anywhere_changes_no_token_and_costs_no_rebuild(arm: str, order: str) -> None:
    whole = Pair(arm, order=order)
    whole.finish()
    for at in range(whole.moves + 1):
        pair = Pair(arm, order=order)
        pair.advance(at)
        pair.cut()
        pair.finish()
        assert (pair.driver.rebuilds, pair.driver.refusals) == (0, 0), f"cut at {at}"
        assert pair.driver.replies == whole.driver.replies


@pytest.mark.parametrize("arm", ARMS)
def test_every_pair_of_prefixes_of_both_directions_can_be_cut(arm: str) -> None:
    """i messages up and j down got through, however much was computed meanwhile."""
    whole = Pair(arm, order="wdu")
    whole.finish()
    for ups, downs in itertools.product(range(whole.ups + 1), range(whole.downs + 1)):
        pair = Pair(arm, order="wdu")
        pair.up_limit, pair.down_limit = ups, downs
        pair.run()
        pair.cut()
        pair.finish()
        assert pair.driver.replies == whole.driver.replies, (ups, downs)
        assert pair.driver.rebuilds == 0


@pytest.mark.parametrize("arm", ARMS)
def test_two_cuts_anywhere_change_no_token(arm: str) -> None:
    whole = Pair(arm, SHORT)
    whole.finish()
    for first, second in itertools.combinations_with_replacement(range(whole.moves + 3), 2):
        pair = Pair(arm, SHORT)
        pair.advance(first)
        pair.cut()
        pair.advance(second)
        pair.cut()
        pair.finish()
        assert pair.driver.replies == whole.driver.replies, (first, second)
        assert pair.driver.rebuilds == 0


@pytest.mark.parametrize("arm", ARMS)
def test_a_cloud_that_forgot_everything_is_filled_again(arm: str) -> None:
    whole = Pair(arm)
    whole.finish()
    rebuilds = 0
    for at in range(whole.moves):
        pair = Pair(arm)
        pair.advance(at)
        pair.cut(to=pair.new_host())
        pair.finish()
        assert pair.driver.replies == whole.driver.replies
        assert pair.driver.refusals == 0
        rebuilds += pair.driver.rebuilds
    assert rebuilds > whole.moves // 2


@pytest.mark.parametrize("arm", ARMS)
def test_a_replica_that_missed_something_is_not_believed(arm: str) -> None:
    """From one host to another and back: the first one holds positions, but of another past."""
    whole = Pair(arm, SHORT)
    whole.finish()
    for first, second in itertools.combinations_with_replacement(range(2 * whole.moves), 2):
        pair = Pair(arm, SHORT)
        pair.advance(first)
        pair.cut(to=pair.new_host())
        pair.advance(second)
        pair.cut(to=pair.hosts[0])
        pair.finish()
        assert pair.driver.replies == whole.driver.replies, (first, second)


@pytest.mark.parametrize("code", [ErrorCode.INTERNAL, ErrorCode.OVERLOADED, ErrorCode.BAD_TENSOR])
@pytest.mark.parametrize("arm", ARMS)
def test_a_step_that_fails_anywhere_is_refused_once_and_the_session_goes_on(arm: str, code: ErrorCode) -> None:
    whole = Pair(arm)
    whole.finish()
    for order, part in itertools.product(ORDERS, range(1, whole.parts + 1)):
        pair = Pair(arm, order=order)
        pair.fail_at = {part: code}
        pair.finish()
        assert pair.driver.refusals == 1, (order, part)
        assert pair.driver.replies == whole.driver.replies


@pytest.mark.parametrize("arm", ARMS)
def test_a_failure_and_a_cut_together_change_no_token(arm: str) -> None:
    whole = Pair(arm, SHORT)
    whole.finish()
    for part, at in itertools.product(range(1, whole.parts + 1), range(0, whole.moves + 3, 2)):
        pair = Pair(arm, SHORT)
        pair.fail_at = {part: ErrorCode.INTERNAL}
        pair.advance(at)
        pair.cut()
        pair.finish()
        assert pair.driver.replies == whole.driver.replies, (part, at)


@pytest.mark.parametrize("after", range(1, 8))
@pytest.mark.parametrize("order", ORDERS)
def test_a_cancelled_generation_ends_early_and_both_sides_agree_how_far_it_went(order: str, after: int) -> None:
    turns = (Turn(keep=0, says=(1, 2, 3, 4), max_tokens=40, cancel_after=after), *CHAT[1:])
    pair = Pair("cloud", turns, order=order, seed=LONG)
    pair.finish()
    reply = pair.driver.replies[0]
    assert reply == model.reference([1, 2, 3, 4], 40, LONG)[: len(reply)]
    assert after <= len(reply)
    if order == "udw":  # messages travel before anything is computed
        assert len(reply) <= after + 1
        assert any(isinstance(frame, Cancel) for frame in pair.log)


def test_a_cancel_survives_its_stream() -> None:
    """Cancelled, cut before the step arrived, sent again: it must not run to its end."""
    turns = (Turn(keep=0, says=(1, 2, 3, 4), max_tokens=40),)
    for arrives in (False, True):
        pair = Pair("cloud", turns, seed=LONG, chunk=2, order="udw")
        pair.up_limit = 9 if arrives else 1
        pair.down_limit = 0
        pair.run(until=lambda pair: pair.parts == 3)
        machine = pair.driver.machine
        machine.broke()
        assert machine.cancel(machine._ticket) is None
        pair.driver._cancelled = True
        pair.cut()
        pair.finish()
        assert len(pair.driver.replies[0]) <= 3


def test_a_step_cancelled_in_the_queue_generates_one_token() -> None:
    pair = Pair("cloud", (Turn(keep=0, says=tuple(range(1, 9)), max_tokens=40),), seed=LONG, chunk=4, order="uwd")
    frame = pair.driver.machine.cancel(pair.driver.machine._ticket)
    assert isinstance(frame, Cancel)
    pair._send([frame])
    pair.driver._cancelled = True
    pair.finish()
    assert len(pair.driver.replies[0]) == 1


def test_only_what_the_device_lacks_is_sent_again() -> None:
    """A reply of many tokens, nearly all delivered: replaying it whole would flood the new stream."""
    turns = (Turn(keep=0, says=(1, 2, 3, 4), max_tokens=40),)
    pair = Pair("cloud", turns, seed=LONG, order="wud")
    pair.run(until=lambda pair: len(pair.driver.replies) == 1 and len(pair.driver.reply) == 30)
    before = len(pair.log)
    pair.cut()
    pair.finish()
    again = [frame for frame in pair.log[before:] if isinstance(frame, Result)]
    assert [frame.index for frame in again] == list(range(30, 40))
    assert [frame.last for frame in again] == [False] * 9 + [True]


def test_a_lost_reply_is_answered_from_the_cache_without_computing_again() -> None:
    for arm in ARMS:
        pair = Pair(arm, (Turn(keep=0, says=(1, 2), max_tokens=1),), order="uwd")
        pair.down_limit = 1
        pair.run()
        assert pair.parts == 1
        pair.cut()
        pair.finish()
        assert pair.parts == 1


def test_the_sampler_remembers_the_tokens_that_a_replay_delivers() -> None:
    """Sampling depends on the reply's tokens: what was generated but not delivered at the cut belongs to them."""
    pair = Pair("cloud", (Turn(keep=0, says=(1, 2, 3, 4), max_tokens=12),), seed=LONG, order="wud")
    pair.run(until=lambda pair: bool(pair.driver.replies) and len(pair.driver.reply) == 3)
    pair.cut()
    pair.finish()  # the driver compares every token
    assert len(pair.driver.reply) == 12


def test_a_device_back_before_its_step_has_ended_hears_nothing_of_it_until_it_is_attached() -> None:
    """Results under the old handle would reach whichever session has that number on the new stream."""
    for arm in ARMS:
        pair = Pair(arm, order="uwd")
        pair.run(until=lambda pair: pair.ups == 2)
        assert pair.held.session.busy
        old = pair.driver.machine.fence
        pair.up.clear()
        pair.driver.broke()
        before = len(pair.log)
        pair._send(pair.driver.reattach(77))  # the same stream, another handle, the step still running
        pair.run()
        answers = [frame for frame in pair.log[before:] if isinstance(frame, Opened | Result)]
        assert isinstance(answers[0], Opened)
        assert all(frame.handle == 77 and frame.fence > old for frame in answers)
        assert pair.driver.done


def test_positions_that_a_lost_open_gave_up_are_cut_when_the_device_comes_back() -> None:
    """The third turn keeps 5 positions of 16; its open is lost with the stream."""
    pair = Pair("split")
    pair.run(until=lambda pair: len(pair.driver.replies) == 3)
    pair.up.clear()
    pair.cut()
    pair.finish()
    assert any(isinstance(frame, Truncate) and frame.length == 5 for frame in pair.log)
    assert pair.driver.rebuilds == 0


def test_a_cloud_that_loses_a_reply_it_had_begun_is_a_gap_not_a_protocol_error() -> None:
    """One step of prompt and generation, some tokens delivered, then the cloud starts anew: nothing was confirmed."""
    pair = Pair("cloud", (Turn(keep=0, says=(1, 2, 3), max_tokens=20),), seed=LONG, order="duw")
    pair.run(until=lambda pair: len(pair.driver.reply) == 7)
    assert pair.driver.machine.confirmed == 0
    pair.cut(to=pair.new_host())
    pair.finish()
    assert pair.driver.rebuilds == 1
    assert len(pair.driver.reply) == 20


def test_a_session_is_freed_when_its_device_closes_it_even_while_opening_anew() -> None:
    pair = Pair("split", order="uwd")
    pair.run(until=lambda pair: pair.ups == 2)
    assert pair.held.session.busy
    pair.up.clear()
    pair.driver.broke()
    frames = pair.driver.reattach(9)
    close = pair.driver.machine.close()
    pair._send([*frames, close])
    pair.run(until=lambda pair: not pair.up)
    assert pair.host.sessions == {}
    assert pair.host.engine.slots == {}
    assert pair.driver.machine.state is State.CLOSED
