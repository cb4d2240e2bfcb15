"""Decisions recomputed from their log lines"""

from __future__ import annotations

from dataclasses import replace

from splitglm_core.errors import InputError
from splitglm_partitioner import typed_json
from splitglm_partitioner.decision import LOG_VERSION, Decision, digest_of
from splitglm_partitioner.guidance import Guidance
from splitglm_partitioner.policy import decide
from splitglm_partitioner.request import Situation
from splitglm_partitioner.steering import steer

_FIELDS = {"version", "digest", "plan", "value", "why", "inputs", "guidance", "notes"}


def replay(line: str) -> Decision:
    """Recompute the decision that ``Decision.log_line`` recorded. Its notes are as recorded: they decide nothing.

    Raises:
        InputError: the line is malformed, of another version, or its inputs do not have the recorded digest.
        NoFeasiblePlan: the recorded inputs allow no plan.
    """
    plain = typed_json.parse(line, "decision line")
    if not isinstance(plain, dict) or "version" not in plain:
        raise InputError("this is not a decision line", "use a line that Decision.log_line() wrote")
    if plain["version"] != LOG_VERSION:
        raise InputError(f"decision line of version {plain['version']!r}, not {LOG_VERSION}")
    if plain.keys() != _FIELDS:
        raise InputError("this is not a decision line", "use a line that Decision.log_line() wrote")
    situation = typed_json.read(Situation, plain["inputs"], "inputs")
    guidance = None if plain["guidance"] is None else typed_json.read(Guidance, plain["guidance"], "guidance")
    if plain["digest"] != digest_of(situation, guidance):
        raise InputError("the inputs of the decision line do not have the recorded digest")
    notes = plain["notes"]
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise InputError("the notes of the decision line are not a list of texts")
    decision = replace(decide(situation), notes=tuple(notes))
    return decision if guidance is None else steer(decision, guidance)
