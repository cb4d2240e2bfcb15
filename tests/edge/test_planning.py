"""From a request to a plan: what is noted, and what is asked of the link."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_cloud import RunningCloud, open_agent

from splitglm_core.errors import NoFeasiblePlan
from splitglm_edge import Agent
from splitglm_partitioner.governor import Vitals
from splitglm_partitioner.request import Request

REQUEST = Request(prompt_tokens=20, expected_new_tokens=8)


def decided(agent: Agent, monkeypatch: pytest.MonkeyPatch, vitals: Vitals) -> tuple[str, ...]:
    with monkeypatch.context() as patch:
        patch.setattr(agent._planner, "vitals", lambda: vitals)
        return agent.decide(REQUEST).notes


def test_memory_that_others_need_is_noted_only_where_a_plan_could_feel_it(
    model: Path, home: Path, agent: Agent, cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = agent.profile
    need = profile.memory_bytes(profile.layers, REQUEST.positions, embedding=True, head=True)
    reserve = 256 << 20
    with open_agent(model, home) as alone:
        assert decided(alone, monkeypatch, Vitals(memory_bytes_available=reserve + need)) == ()
        (heat,) = decided(alone, monkeypatch, Vitals(memory_bytes_available=reserve + need, temperature_c=95.0))
        assert "degC" in heat, "what heat forbids is noted as before"
    with open_agent(model, home) as alone, pytest.raises(NoFeasiblePlan, match="memory"):
        decided(alone, monkeypatch, Vitals(memory_bytes_available=reserve + need - 1))
    with open_agent(model, home, cloud) as shared:
        (memory,) = decided(shared, monkeypatch, Vitals(memory_bytes_available=reserve + need - 1))
        assert "of memory may be used" in memory
