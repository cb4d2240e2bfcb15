"""The exception tree: one line for a person, one status for every way out, nothing left unmapped."""

from __future__ import annotations

import inspect

import pytest

from splitglm_core import errors
from splitglm_core.errors import STATUS_TABLE, Blame, RemoteError, SecurityError, SplitGlmError, status_of

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SplitGlmError)]
# grpc.StatusCode's names; written out, because this room knows no grpc
GRPC_CODES = {
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}  # fmt: skip


def make(kind: type[SplitGlmError]) -> SplitGlmError:
    return kind("what failed", "try this")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_says_what_failed_whose_fault_and_what_to_try(kind: type[SplitGlmError]) -> None:
    error = make(kind)
    assert error.one_line() == f"what failed (fault: {error.blame.value}). Try: try this"
    assert error.blame in Blame
    assert str(error) == "what failed"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_no_less_specific_than_its_parents(kind: type[SplitGlmError]) -> None:
    status = status_of(make(kind))
    first = next(row for row, _ in STATUS_TABLE if issubclass(kind, row))
    closest = next(parent for parent in kind.__mro__ if parent in dict(STATUS_TABLE))
    assert first is closest, "the table must list derived errors before their parents"
    assert status.grpc in GRPC_CODES
    assert 400 <= status.http < 600
    assert 1 <= status.exit_code <= 255


def test_an_error_without_a_hint_ends_after_the_blame() -> None:
    assert SplitGlmError("broken").one_line() == "broken (fault: splitglm itself)"


def test_every_cryptographic_failure_reads_the_same() -> None:
    assert SecurityError().one_line() == "secure channel failed (fault: the link)"


def test_a_remote_error_carries_its_code_and_when_to_come_back() -> None:
    error = RemoteError("busy", code="OVERLOADED", retry_after_s=1.5)
    assert (error.code, error.retry_after_s) == ("OVERLOADED", 1.5)


@pytest.mark.parametrize(
    ("error", "exit_code"), [(KeyboardInterrupt(), 130), (ValueError("x"), 70), (SystemExit(), 70)]
)
def test_foreign_exceptions_are_internal_and_ctrl_c_is_a_cancel(error: BaseException, exit_code: int) -> None:
    assert status_of(error).exit_code == exit_code
