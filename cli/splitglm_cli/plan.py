"""``splitglm plan``: what the policy would choose, and what each kind of plan should cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitglm_cli import options
from splitglm_core.plan import Precision, Privacy

if TYPE_CHECKING:
    from splitglm_partitioner.decision import Choice, Decision
    from splitglm_partitioner.governor import Vitals


def plan(
    model: options.Model,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Length of the prompt.")] = 256,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Length of the answer.")] = 128,
    privacy: options.PrivacyOption = Privacy.NO_TEXT,
    split: options.Split = None,
    codec: options.CodecOption = None,
    precision: options.PrecisionOption = Precision.INT8,
    threads: options.Threads = 0,
    deadline: options.Deadline = None,
    energy_budget: options.EnergyBudget = None,
    objective: options.ObjectiveOption = None,
    chunk: options.Chunk = None,
    cloud: options.Cloud = None,
    cloud_key: options.CloudKey = None,
    trust_first_use: options.TrustFirstUse = False,
    psk_file: options.PskFile = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Explain the plan for a request of this size without running it. With --cloud the link is measured."""
    from splitglm_cli.opening import CloudOptions, open_agent
    from splitglm_cli.reply_options import chunk_options, parse_objective
    from splitglm_cli.split_option import SplitOption

    cut = SplitOption.parse(split)
    weights = None if objective is None else parse_objective(objective)
    where = CloudOptions(address=cloud, key=cloud_key, trust_first_use=trust_first_use, psk_file=psk_file).resolve()
    from splitglm_cli.plan_facts import plan_facts
    from splitglm_cli.text_table import text_facts
    from splitglm_edge.agent import DEFAULT_CODECS
    from splitglm_edge.planning import sendable_chunks
    from splitglm_partitioner import explain
    from splitglm_partitioner.request import Fixed, Request

    with open_agent(model, where, precision=precision, threads=threads, quiet=quiet) as agent:
        sizes: dict[str, Any] = {"chunk_tokens": 128} | chunk_options(chunk)
        codecs = DEFAULT_CODECS if codec is None else (codec,)
        hidden = agent.checkpoint.config.shape.hidden
        given = sendable_chunks(prompt_tokens, **sizes, codecs=codecs, hidden=hidden) | {"codecs": codecs}
        if weights is not None:
            given["objective"] = weights
        request = Request(
            prompt_tokens=prompt_tokens,
            expected_new_tokens=new_tokens,
            privacy=privacy,
            deadline_s=deadline,
            energy_budget_j=energy_budget,
            fixed=Fixed() if cut is None else cut.fixed(agent.checkpoint.config.shape.layers, privacy),
            **given,
        )
        if where is not None and privacy is not Privacy.LOCAL:
            agent.link()  # a cloud that was asked for and is not there is worth an error here, not a silent fallback
        decision = agent.decide(request)
        profile, vitals = agent.profile, agent.vitals()
    if as_json:
        print(json.dumps(_as_json(decision, vitals)))
        return
    print(explain.in_words(decision))
    print()
    print(explain.table(decision))
    print()
    print(explain.terms_table(decision))
    print()
    print(text_facts(plan_facts(decision, profile, vitals)))


def _as_json(decision: Decision, vitals: Vitals) -> dict[str, Any]:
    situation = decision.situation
    from splitglm_partitioner.typed_json import to_plain

    return {
        "chosen": _choice(decision.chosen),
        "runners_up": [_choice(choice) for choice in decision.runners_up],
        "excluded": [
            {"arm": e.arm.value, "constraint": e.constraint.value, "detail": e.detail} for e in decision.excluded
        ],
        "why": decision.why,
        "request": to_plain(situation.request),
        "link": to_plain(situation.link),
        "device": {
            "slowdown": situation.device.slowdown,
            "max_layers": situation.device.max_layers,
            "memory_bytes_free": situation.device.memory_bytes_free,
        },
        "cloud": None
        if situation.cloud is None
        else {
            "queue_s": situation.cloud.queue_s,
            "sweep_s": situation.cloud.sweep_s,
            "slowdown": situation.cloud.slowdown,
        },
        "factors": to_plain(situation.factors),
        "vitals": to_plain(vitals),
        "digest": decision.inputs_digest,
    }


def _choice(choice: Choice) -> dict[str, Any]:
    from splitglm_partitioner.typed_json import to_plain

    cost = choice.breakdown
    return {
        "plan": {"arm": choice.plan.arm.value, **to_plain(choice.plan)},
        "value": choice.value,
        "ttft_s": cost.ttft_s,
        "per_token_s": cost.per_token_s,
        "total_s": cost.total_s,
        "prefill_s": cost.prefill._asdict(),
        "step_s": cost.step._asdict(),
        "uplink_bytes": cost.uplink_bytes,
        "downlink_bytes": cost.downlink_bytes,
        "device_memory_bytes": cost.device_memory_bytes,
        "energy_j": cost.energy_j,
        "price": cost.price,
    }
