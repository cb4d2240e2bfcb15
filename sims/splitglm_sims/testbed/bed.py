"""The real system on a stage: one agent, its cloud, and between them a link that replays a scene's traces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from splitglm_core.errors import InputError, InternalError
from splitglm_core.plan import Arm, Precision, Privacy, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_edge import Agent, CloudAddress, Stats
from splitglm_edge.probe import measure_device
from splitglm_edge.timeouts import Timeouts
from splitglm_glm.export.manifest import GraphsManifest
from splitglm_glm.opening import open_checkpoint, open_stack
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.store import ModelStore
from splitglm_partitioner.observations import Outcome
from splitglm_partitioner.request import Fixed
from splitglm_sims.testbed.replayed_link import ReplayedLink
from splitglm_sims.world.scene import Job

_FIRST_PLAIN_ID = 100  # below lie the special tokens and control characters of the vocabularies in use


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One job, really done.

    Attributes:
        job, plan, outcome: as in the simulator's record; ``outcome`` has the bytes of the sealed records.
        link_offset_s: the instant of the link's traces at which the reply was asked for.
        tcp_up_bytes, tcp_down_bytes: what entered the link meanwhile, with all framing, acknowledgements and goodbyes.
        stats: the agent's own account.
    """

    job: Job
    plan: SplitPlan
    outcome: Outcome
    link_offset_s: float
    tcp_up_bytes: int
    tcp_down_bytes: int
    stats: Stats


def prompt_ids(tokens: int, vocab: int, seed: int) -> list[int]:
    """A prompt of exactly so many token ids; no two seeds share a prefix worth speaking of."""
    if not vocab > 2 * _FIRST_PLAIN_ID:
        raise InputError(f"a vocabulary of {vocab} tokens has no plain ones to write a prompt with")
    drawn = np.random.default_rng(seed).integers(_FIRST_PLAIN_ID, vocab - _FIRST_PLAIN_ID, tokens)
    return [int(token) for token in drawn]


def fixed_of(plan: SplitPlan) -> Fixed:
    """What to ask the policy for so that it must choose ``plan`` (with the plan's chunk and codec asked for too)."""
    cut = plan.arm in (Arm.SPLIT, Arm.USHAPE)
    return Fixed(arm=plan.arm, s=plan.s if cut else None, t=plan.t if cut else None, codec=plan.codec if cut else None)


class Testbed:
    """An open agent behind a running link. Used from one thread; ``open_testbeds`` makes some."""

    __test__ = False  # not a test class, whatever its name begins with

    def __init__(self, agent: Agent, link: ReplayedLink) -> None:
        self.agent = agent
        self.link = link

    def run(self, job: Job, *, offset_s: float, plan: SplitPlan | None = None, seed: int = 0) -> Run:
        """Ask for the job's reply when the link's traces stand at ``offset_s``, and wait until it is complete.

        With a ``plan`` the reply is fixed to it, and the link was pinged just before, so that no probe is in its time;
        without, the agent's policy decides, probes included. Each reply is a conversation of its own.

        Args:
            seed: of the prompt.

        Raises:
            InputError: the job shares tokens with a turn before.
            what the reply raises.
        """
        if job.shared_tokens:
            raise InputError("the testbed runs first turns only", "use jobs without shared_tokens")
        agent = self.agent
        ids = prompt_ids(job.prompt_tokens, agent.checkpoint.config.shape.vocab, seed)
        if plan is not None and plan.arm is not Arm.DEVICE:
            agent.link()
        before = self.link.carried_bytes()
        began_s = self.link.begin(offset_s)
        time.sleep(max(0.0, began_s - time.monotonic()))  # until the traces are where the run begins
        asked_s = time.monotonic()
        if plan is None:
            reply = agent.generate(ids, max_tokens=job.new_tokens, ignore_eos=True, privacy=job.privacy)
        else:
            privacy = Privacy.LOCAL if plan.arm is Arm.DEVICE else Privacy.OPEN
            reply = agent.generate(
                ids,
                max_tokens=job.new_tokens,
                ignore_eos=True,
                privacy=privacy,
                fixed=fixed_of(plan),
                codecs=(plan.codec,),
                chunk_tokens=plan.chunk_tokens,
            )
        reply.result()
        after = self.link.carried_bytes()
        stats = reply.stats
        if stats is None:
            raise InternalError("a reply ended without statistics")
        return Run(
            job=job,
            plan=stats.plan,
            outcome=_outcome(stats),
            link_offset_s=offset_s + asked_s - began_s,
            tcp_up_bytes=after[0] - before[0],
            tcp_down_bytes=after[1] - before[1],
            stats=stats,
        )


@contextmanager
def open_testbeds(
    model: str,
    link: ReplayedLink,
    *,
    key: str,
    count: int = 1,
    precision: Precision = Precision.INT8,
    threads: int = 1,
    store: ModelStore | None = None,
    timeouts: Timeouts | None = None,
) -> Iterator[tuple[Testbed, ...]]:
    """``count`` agents of ``model`` whose cloud, with identity ``key``, is reached over ``link``.

    The agents know nothing of each other, but run the same layers in memory: a model that is opened twice computes at
    two speeds, several percent apart, by where its weights happen to lie. The device is this process, and its profile
    is measured here and now on those layers: pin it before.

    Raises:
        what ``Agent.open`` raises.
    """
    store = store or ModelStore()
    checkpoint = open_checkpoint(model, store)
    shape = checkpoint.config.shape
    layers, options = LayerRange(0, shape.layers), RuntimeOptions(threads=threads)
    stack = open_stack(checkpoint, precision, layers=layers, embedding=True, head=True, store=store, options=options)
    graphs = GraphsManifest.open(store.graphs_dir(checkpoint.directory, precision), checkpoint.fingerprint, precision)
    profile = measure_device(checkpoint, stack, graphs)
    where = CloudAddress(address=link.address, key=key)
    with ExitStack() as opened:
        agents = [
            opened.enter_context(
                Agent(
                    checkpoint=checkpoint,
                    stack=stack,
                    profile=profile,
                    cloud=where,
                    context=shape.max_positions,
                    timeouts=timeouts,
                )
            )
            for _ in range(count)
        ]
        yield tuple(Testbed(agent, link) for agent in agents)


def job_of(prompt_tokens: int, new_tokens: int, *, privacy: Privacy = Privacy.OPEN) -> Job:
    """A first turn that is asked for at once."""
    return Job(
        at_s=0.0,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        genre="chat",
        conversation=0,
        privacy=privacy,
    )


def _outcome(stats: Stats) -> Outcome:
    rest_s = (stats.new_tokens - 1) / stats.tokens_per_s if stats.tokens_per_s else 0.0
    return Outcome(
        ttft_s=stats.ttft_s,
        total_s=stats.ttft_s + rest_s,
        new_tokens=stats.new_tokens,
        uplink_bytes=stats.bytes_up,
        downlink_bytes=stats.bytes_down,
    )
