"""``--criticality``: four names, checked before a model is opened, in the form that the agent takes."""

from __future__ import annotations

import pytest
from cli_runs import Run, one_line_error

from splitglm_cli.options import CRITICALITIES
from splitglm_cli.reply_options import parse_criticality
from splitglm_core.criticality import Criticality
from splitglm_core.errors import InputError


def test_every_class_has_a_name_and_the_most_critical_is_first() -> None:
    assert CRITICALITIES == ("critical-plus", "critical", "sheddable-plus", "sheddable")
    assert [parse_criticality(name) for name in CRITICALITIES] == sorted(Criticality)
    assert parse_criticality("Sheddable") is Criticality.SHEDDABLE


@pytest.mark.parametrize("name", ["", "1", "high", "critical_plus"])
def test_another_name_is_refused_with_the_right_ones(name: str) -> None:
    with pytest.raises(InputError) as error:
        parse_criticality(name)
    assert "sheddable-plus" in error.value.hint


def test_the_command_takes_it_and_refuses_what_it_does_not_know(splitglm: Run, tiny: str) -> None:
    answered = splitglm("run", tiny, "hello", "--max-tokens", "2", "--criticality", "sheddable", "--quiet")
    assert answered.code == 0 and answered.err == ""
    refused = splitglm("run", tiny, "hello", "--criticality", "urgent")
    assert refused.code == 64 and "'urgent' is not a criticality" in one_line_error(refused)
