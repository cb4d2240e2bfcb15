"""From a request to a plan: connect and ask the link what matters, then decide on all that is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from splitglm_core.errors import InputError, ModelMismatch, NoFeasiblePlan, PromptTooLong, SecurityError, SplitGlmError
from splitglm_core.plan import Codec, Privacy
from splitglm_edge.advice import Advice
from splitglm_edge.connection import CloudConnection
from splitglm_edge.conversation import Conversation, Prepared
from splitglm_edge.vitals import Sensors
from splitglm_partitioner import explain
from splitglm_partitioner.decision import Decision
from splitglm_partitioner.governor import Vitals
from splitglm_partitioner.profiles import DeviceProfile
from splitglm_partitioner.request import MAX_CHUNKS, Request, Warm
from splitglm_wire import codec
from splitglm_wire.limits import MAX_ROWS


class Planner:
    """Decides for one device and at most one cloud."""

    def __init__(
        self,
        advice: Advice,
        cloud: CloudConnection | None,
        device: DeviceProfile,
        held_bytes: Callable[[], int],
        sensors: Sensors | None = None,
    ) -> None:
        """Begin.

        Args:
            device: as it was profiled.
            held_bytes: memory that this process holds for the model: a plan may use it, although it is not available
                to others.
        """
        self._advice = advice
        self._cloud = cloud
        self._device = device
        self._held_bytes = held_bytes
        self._sensors = sensors or Sensors()

    def vitals(self) -> Vitals:
        """What the sensors say, and what this process holds."""
        return replace(self._sensors.read(), memory_bytes_held=self._held_bytes())

    def decide(self, request: Request, *, genre: str = "", use_cloud: bool = True) -> tuple[Decision, tuple[str, ...]]:
        """The decision, and a note when the cloud was left out because it cannot be reached or is too small.

        Raises:
            InputError: energy is weighed or bounded, and this device's power was never stated.
            NoFeasiblePlan: nothing is allowed.
            SecurityError, ModelMismatch: the cloud that answered is the wrong one.
            LinkError, RemoteError: only the cloud could serve this, and it cannot be reached.
            PromptTooLong: only the cloud could serve this, and it serves no such long conversation.
        """
        if self._device.power is None and (request.objective.energy > 0.0 or request.energy_budget_j is not None):
            raise InputError(
                "energy is weighed or bounded, and this device's power is not stated",
                "state it once: splitglm profile MODEL --compute-watts W --radio-watts W --uplink-joules-per-mb J "
                "--downlink-joules-per-mb J (with the same --precision and --threads)",
            )
        usable, unusable, vitals = False, None, self.vitals()
        if self._cloud is not None and use_cloud and request.privacy is not Privacy.LOCAL:
            try:
                self._cloud.link()
                if request.positions > self._cloud.max_context:
                    new_tokens = request.positions - request.prompt_tokens
                    raise PromptTooLong(
                        f"{request.prompt_tokens} prompt tokens and up to {new_tokens} new ones exceed the "
                        f"{self._cloud.max_context} positions that the cloud serves",
                        "shorten the prompt or lower --max-tokens",
                    )
                self._advice.queued(self._cloud.busy_until_s())
                self._cloud.probe(self._advice.wants(request, vitals=vitals, genre=genre))
                self._advice.queued(self._cloud.busy_until_s())  # asking took its time
                usable = True
            except (SecurityError, ModelMismatch):
                raise  # the wrong cloud is a matter for a person, not a reason to go on silently
            except SplitGlmError as error:
                unusable = error
        try:
            decision = self._advice.decide(request, vitals=vitals, genre=genre, use_cloud=usable)
        except NoFeasiblePlan:
            if unusable is not None:
                raise unusable from None
            raise
        decision = replace(decision, notes=felt_notes(decision))
        return decision, () if unusable is None else (f"without the cloud: {unusable.what}",)

    def prepare(self, talk: Conversation, request: Request, *, genre: str = "", use_cloud: bool) -> Prepared:
        """Decide, and make the conversation's caches ready for it. Raises what ``decide`` and connecting raise."""
        decision, notes = self.decide(request, genre=genre, use_cloud=use_cloud)
        decoder = talk.decoder_for(decision.plan, self._cloud)
        self._advice.began(decision)
        return Prepared(
            plan=decision.plan,
            decoder=decoder,
            remote=talk.remote,
            decision=decision,
            why=explain.in_words(decision),
            notes=notes,
        )


def sendable_chunks(
    prompt_tokens: int, chunk_tokens: int, chunks: tuple[int, ...], *, codecs: tuple[Codec, ...], hidden: int
) -> dict[str, Any]:
    """``chunk_tokens`` and ``chunks`` of a request, as far as they run as they are and cut the prompt into few.

    Whichever of ``codecs`` the plan takes, a record holds a chunk of hidden states of width ``hidden``: a plan is never
    made for chunks that sending would cut smaller.
    """
    most = min((codec.max_rows(one, hidden) for one in codecs), default=MAX_ROWS)
    own = min(chunk_tokens, most)
    others = [size for size in chunks if size != own and size <= most and prompt_tokens <= MAX_CHUNKS * size]
    return {"chunk_tokens": own, "chunks": tuple(others)}


def felt_notes(decision: Decision) -> tuple[str, ...]:
    """What bound the device (``Decision.notes``), less a bound on its memory that leaves room for every plan.

    The governor tells its bound on memory wherever it is below what was free when the device was profiled, which is
    nearly always; it is news only where the whole model with the longest answer would not fit.
    """
    device, request = decision.situation.device, decision.situation.request
    most = device.memory_bytes(device.layers, request.positions, embedding=True, head=True)
    if most > device.memory_bytes_free:
        return decision.notes
    return tuple(note for note in decision.notes if not note.startswith(f"{device.memory_bytes_free / 1e6:.0f} MB of "))


def warm_for(talk: Conversation, ids: list[int]) -> Warm | None:
    """What the conversation's caches hold of a prompt, None when it is nothing that could be used."""
    kept = talk.decoder
    if kept is None or not kept.usable:
        return None
    cached = kept.shared_prefix(ids)
    return Warm(plan=kept.plan, cached_tokens=cached) if cached else None
