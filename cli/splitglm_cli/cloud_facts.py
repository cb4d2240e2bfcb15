"""What ``doctor --cloud`` finds out by meeting the cloud as a device would."""

from __future__ import annotations

from typing import Any, Final

from splitglm_core.errors import ModelMismatch, ModelNotFound
from splitglm_edge import CloudAddress
from splitglm_edge.advice import LinkAdvice
from splitglm_edge.connection import CloudConnection
from splitglm_glm.opening import open_checkpoint
from splitglm_glm.store import ModelStore

_NO_MODEL: Final = bytes(32)


def cloud_facts(where: CloudAddress, model: str | None) -> dict[str, Any]:
    """Connect, shake hands, check the identity, measure the link.

    Without a model of the cloud's here the handshake still proves who it is; then it says which model it serves.

    Raises:
        LinkError, SecurityError, PeerUntrusted, VersionMismatch, Overloaded: as the connection does.
        ModelNotFound, ModelMismatch: of a ``model`` that was named.
    """
    store = ModelStore()
    names = [model] if model is not None else [found.name for found in store.list() if not found.problem]
    met: ModelMismatch | None = None
    for name in names:
        try:
            return _meet(where, name, open_checkpoint(name, store).fingerprint)
        except ModelMismatch as mismatch:
            if model is not None:
                raise
            met = mismatch
        except ModelNotFound:
            if model is not None:
                raise
    if met is None:
        try:
            return _meet(where, "none", _NO_MODEL)
        except ModelMismatch as mismatch:
            met = mismatch
    return {"address": where.address, "identity": "as expected", "model": f"none of this device's: {met.what}"}


def _meet(where: CloudAddress, model: str, fingerprint: bytes) -> dict[str, Any]:
    advice = LinkAdvice()
    connection = CloudConnection(where, fingerprint, advice)
    try:
        link, estimate = connection.link(), advice.link()
        offer = link.manifest
        return {
            "address": where.address,
            "identity": link.verdict.value,
            "model": model,
            "version": offer.version,
            "layers": str(offer.layers),
            "embedding": offer.embedding,
            "head": offer.head,
            "precision": offer.precision.value,
            "codecs": [codec.value for codec in offer.codecs],
            "max_context": offer.max_context,
            "rtt_ms": round(1e3 * estimate.rtt_s, 2),
            "up_mb_per_s": round(estimate.uplink_bytes_per_s / 1e6, 1),
            "down_mb_per_s": round(estimate.downlink_bytes_per_s / 1e6, 1),
        }
    finally:
        connection.close()
