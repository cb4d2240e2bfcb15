"""What this cloud serves: whether a session may be opened as its device asks. Pure."""

from __future__ import annotations

from splitglm_cloud.gateway.refusal import Refusal
from splitglm_core.plan import Arm, HeadSide
from splitglm_core.shapes import ModelShape
from splitglm_wire.frames import ErrorCode, Open
from splitglm_wire.manifest import CloudManifest


def refusal(frame: Open, shape: ModelShape, manifest: CloudManifest) -> Refusal | None:
    """Why a cloud with this manifest does not serve the session, or None. Nothing has been allocated for it yet."""
    plan = frame.plan
    if plan.layers != shape.layers or plan.arm is Arm.DEVICE or not manifest.layers.covers(plan.back):
        return Refusal(ErrorCode.BAD_REQUEST, "the cloud does not serve these layers")
    if plan.arm is Arm.CLOUD and not manifest.embedding:
        return Refusal(ErrorCode.BAD_REQUEST, "the cloud has no embedding: it takes no token ids")
    if plan.head is HeadSide.CLOUD and not manifest.head:
        return Refusal(ErrorCode.BAD_REQUEST, "the cloud has no head: it cannot sample")
    if plan.codec not in manifest.codecs:
        return Refusal(ErrorCode.BAD_REQUEST, "the cloud does not speak this codec")
    if frame.context > manifest.max_context:
        return Refusal(ErrorCode.TOO_LARGE, "the context is longer than the cloud serves")
    if len(frame.generated) > frame.context:
        return Refusal(ErrorCode.BAD_REQUEST, "more tokens were generated than the context has positions")
    return None
