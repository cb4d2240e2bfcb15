"""From a request to a plan: the policy, fed with what is known about this device, the link and the cloud."""

from __future__ import annotations

from splitglm_core.errors import ModelMismatch, NoFeasiblePlan, SecurityError, SplitGlmError
from splitglm_core.plan import Privacy
from splitglm_core.shapes import ModelShape
from splitglm_edge.connection import CloudConnection
from splitglm_partitioner.policy import Decision, choose
from splitglm_partitioner.profiles import DeviceProfile
from splitglm_partitioner.request import Request


class Planner:
    """Decides for one device and at most one cloud."""

    def __init__(self, shape: ModelShape, profile: DeviceProfile, cloud: CloudConnection | None) -> None:
        self._shape = shape
        self._profile = profile
        self._cloud = cloud

    def decide(self, request: Request, *, use_cloud: bool = True) -> tuple[Decision, tuple[str, ...]]:
        """The decision, and a note when the cloud was left out because it cannot be reached.

        Raises:
            NoFeasiblePlan: nothing is allowed.
            SecurityError, ModelMismatch: the cloud that answered is the wrong one.
            LinkError, RemoteError: only the cloud could serve this, and it cannot be reached.
        """
        link, cloud, unreachable = None, None, None
        if self._cloud is not None and use_cloud and request.privacy is not Privacy.LOCAL:
            try:
                link, cloud = self._cloud.estimate(), self._cloud.profile()
            except (SecurityError, ModelMismatch):
                raise  # the wrong cloud is a matter for a person, not a reason to go on silently
            except SplitGlmError as error:
                unreachable = error
        try:
            decision = choose(request, self._shape, self._profile, link, cloud)
        except NoFeasiblePlan:
            if unreachable is not None:
                raise unreachable from None
            raise
        return decision, () if unreachable is None else (f"without the cloud: {unreachable.what}",)
