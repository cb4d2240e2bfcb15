"""``chat`` from a pipe: turns, caches, commands."""

from __future__ import annotations

import re

from cli_runs import Outcome, Served, start

FLAGS = ("--max-tokens", "6", "--ignore-eos")


def talk(model: str, lines: list[str], *flags: str) -> Outcome:
    process = start("chat", model, *FLAGS, *flags)
    out, err = process.communicate("".join(f"{line}\n" for line in lines), timeout=60)
    return Outcome(process.returncode, out, err)


def tokens(account: str) -> tuple[int, int]:
    """Prompt tokens, and those kept from the turn before, from the words of /stats."""
    found = re.search(r"^tokens +(\d+) in \((\d+) kept", account, re.MULTILINE)
    assert found, account
    return int(found.group(1)), int(found.group(2))


def test_a_conversation_keeps_its_caches_on_both_sides(tiny: str, cloud: Served) -> None:
    outcome = talk(tiny, ["hello", "and more", "/stats", "/quit"], *cloud.trusted, "--split", "1:3")
    assert outcome.code == 0
    assert "ushape" in outcome.err and tokens(outcome.err)[1] > 10
    assert "Traceback" not in outcome.err


def test_reset_forgets(tiny: str) -> None:
    outcome = talk(tiny, ["hello", "/reset", "hello", "/stats"])
    assert outcome.code == 0 and "forgotten" in outcome.err
    assert tokens(outcome.err)[1] == 0
    alone = talk(tiny, ["hello"])
    assert outcome.out == 2 * alone.out, "after a reset the same question gets the same answer"


def test_help_unknown_commands_and_empty_lines_answer_nothing(tiny: str) -> None:
    outcome = talk(tiny, ["", "/help", "/frob", "/stats"])
    assert (outcome.code, outcome.out) == (0, "")
    assert "/reset" in outcome.err and "no command /frob" in outcome.err and "no reply yet" in outcome.err


def test_a_turn_that_cannot_be_served_does_not_end_the_chat(tiny: str) -> None:
    outcome = talk(tiny, ["q" * 200, "hi", "/stats"], "--context", "100")
    assert outcome.code == 0
    assert "context" in outcome.err and "tok/s" in outcome.err


def test_the_system_message_is_part_of_every_conversation(tiny: str) -> None:
    plain, told = talk(tiny, ["hi", "/stats"]), talk(tiny, ["hi", "/stats"], "--system", "be brief")
    assert tokens(plain.err)[0] < tokens(told.err)[0]
