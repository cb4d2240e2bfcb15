"""From a request to a plan: the policy, fed with what is known about this device, the link and the cloud."""

from __future__ import annotations

from splitglm_core.errors import ModelMismatch, NoFeasiblePlan, PromptTooLong, SecurityError, SplitGlmError
from splitglm_core.plan import Privacy
from splitglm_core.shapes import ModelShape
from splitglm_edge.connection import CloudConnection
from splitglm_edge.conversation import Conversation, Prepared
from splitglm_partitioner import explain
from splitglm_partitioner.policy import Decision, choose
from splitglm_partitioner.profiles import DeviceProfile
from splitglm_partitioner.request import Request, Warm


class Planner:
    """Decides for one device and at most one cloud."""

    def __init__(self, shape: ModelShape, profile: DeviceProfile, cloud: CloudConnection | None) -> None:
        self._shape = shape
        self._profile = profile
        self._cloud = cloud

    def decide(self, request: Request, *, use_cloud: bool = True) -> tuple[Decision, tuple[str, ...]]:
        """The decision, and a note when the cloud was left out because it cannot be reached or is too small.

        Raises:
            NoFeasiblePlan: nothing is allowed.
            SecurityError, ModelMismatch: the cloud that answered is the wrong one.
            LinkError, RemoteError: only the cloud could serve this, and it cannot be reached.
            PromptTooLong: only the cloud could serve this, and it serves no such long conversation.
        """
        link, cloud, unusable = None, None, None
        if self._cloud is not None and use_cloud and request.privacy is not Privacy.LOCAL:
            try:
                link, cloud = self._cloud.estimate(), self._cloud.profile()
                if request.positions > self._cloud.max_context:
                    raise PromptTooLong(
                        f"{request.prompt_tokens} prompt tokens and {request.expected_new_tokens} new ones exceed the "
                        f"{self._cloud.max_context} positions that the cloud serves",
                        "shorten the prompt or lower --max-tokens",
                    )
            except (SecurityError, ModelMismatch):
                raise  # the wrong cloud is a matter for a person, not a reason to go on silently
            except SplitGlmError as error:
                link, cloud, unusable = None, None, error
        try:
            decision = choose(request, self._shape, self._profile, link, cloud)
        except NoFeasiblePlan:
            if unusable is not None:
                raise unusable from None
            raise
        return decision, () if unusable is None else (f"without the cloud: {unusable.what}",)

    def prepare(self, talk: Conversation, request: Request, *, use_cloud: bool) -> Prepared:
        """Decide, and make the conversation's caches ready for it. Raises what ``decide`` and connecting raise."""
        decision, notes = self.decide(request, use_cloud=use_cloud)
        decoder = talk.decoder_for(decision.plan, self._cloud)
        return Prepared(
            plan=decision.plan,
            decoder=decoder,
            remote=talk.remote,
            why=explain.in_words(decision),
            notes=notes,
            predicted_ttft_s=decision.breakdown.ttft_s,
            predicted_per_token_s=decision.breakdown.per_token_s,
        )


def warm_for(talk: Conversation, ids: list[int]) -> Warm | None:
    """What the conversation's caches hold of a prompt, None when it is nothing that could be used."""
    kept = talk.decoder
    if kept is None or not kept.usable:
        return None
    cached = kept.shared_prefix(ids)
    return Warm(plan=kept.plan, cached_tokens=cached) if cached else None
