"""Does a step fit its session's plan? Cheap, before anything is queued, decoded or allocated."""

from __future__ import annotations

from splitglm_core.plan import Arm, HeadSide, SplitPlan
from splitglm_wire.codec import payload_bytes
from splitglm_wire.frames import ErrorCode, Reply, Rows, Step
from splitglm_wire.limits import MAX_GENERATE, MAX_REPLY_BYTES


def misfit(step: Step, plan: SplitPlan, *, context: int, hidden: int) -> tuple[ErrorCode, str] | None:
    """Why the step cannot be computed under the plan, or None."""
    if not _asked_for(step, plan):
        return ErrorCode.BAD_REQUEST, "the step does not fit the plan"
    if step.base + step.rows + max(0, step.generate - 1) > context:
        return ErrorCode.TOO_LARGE, "the step does not fit the context"
    size = 4 * step.rows
    if step.rows_kind is Rows.HIDDEN:
        size = payload_bytes(plan.codec, step.rows, hidden, step.base)
    if len(step.payload) != size:
        return ErrorCode.BAD_TENSOR, "the payload does not fit its shape"
    if step.reply is Reply.ALL_HIDDEN and size > MAX_REPLY_BYTES:
        return ErrorCode.TOO_LARGE, "the reply does not fit one record"
    return None


def _asked_for(step: Step, plan: SplitPlan) -> bool:
    """Right kind of rows for the plan's arm, and a reply that this arm has."""
    ids = plan.arm is Arm.CLOUD
    if (step.rows_kind is Rows.IDS) is not ids:
        return False
    if step.reply is Reply.TOKEN:
        return plan.head is HeadSide.CLOUD and 1 <= step.generate <= (MAX_GENERATE if ids else 1)
    return step.generate == 0 and (step.reply is Reply.ACK or plan.head is HeadSide.DEVICE)
