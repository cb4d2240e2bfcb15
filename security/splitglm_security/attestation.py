"""The place where evidence about a node's hardware and software enters the handshake.

A node may put evidence into the payload of message 2. It must be about ``report_data``, which holds the node's key and
the transcript with the client's fresh keys: evidence that is not bound to the session lets a stolen key live for ever
(finding WAPI-7 of the 2025 audit of WhatsApp's Private Processing). No hardware back end ships with this release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from splitglm_core.errors import PeerUntrusted

NONE: Final = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A statement of some hardware about a node; ``kind`` names its format, ``"none"`` means that there is none."""

    kind: str
    document: bytes = b""


class Attester(Protocol):
    """The node's side."""

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence that contains ``report_data`` (64 bytes)."""
        ...


class Verifier(Protocol):
    """The client's side, for one kind of evidence."""

    def verify(self, document: bytes, report_data: bytes) -> bool:
        """True only if the document is genuine, acceptable and about ``report_data``."""
        ...


class NullAttester:
    """A node without attestation hardware says so."""

    def evidence(self, report_data: bytes) -> Evidence:
        return Evidence(kind=NONE)


class AttestationPolicy(Enum):
    """What the client asks for."""

    REQUIRED = "required"
    PREFERRED = "preferred"
    OFF = "off"


class AttestationState(Enum):
    """What the client may tell its user. Only VERIFIED is good news."""

    VERIFIED = "verified"
    NONE = "none"
    UNKNOWN_KIND = "unknown-kind"
    NOT_CHECKED = "not-checked"


def report_data(node_public: bytes, attestation_hash: bytes) -> bytes:
    """The 64 bytes that evidence must contain.

    Args:
        node_public: the node's public key, 32 bytes.
        attestation_hash: ``Initiator.attestation_hash`` or ``Responder.attestation_hash``, after message 1.
    """
    return hashlib.sha512(b"splitglm/1 attest" + node_public + attestation_hash).digest()


def judge(
    policy: AttestationPolicy, evidence: Evidence, expected: bytes, verifiers: Mapping[str, Verifier]
) -> AttestationState:
    """Decide about a node's evidence.

    Args:
        expected: ``report_data`` as this side computes it.
        verifiers: by kind of evidence.

    Raises:
        PeerUntrusted: evidence is required and there is none that can be checked, or (unless the policy is OFF) it is
            false.
    """
    if policy is AttestationPolicy.OFF:
        return AttestationState.NOT_CHECKED
    verifier = None if evidence.kind == NONE else verifiers.get(evidence.kind)
    if verifier is None:
        if policy is AttestationPolicy.REQUIRED:
            raise PeerUntrusted("the node gave no evidence that this device can check", "use a node with attestation")
        return AttestationState.NONE if evidence.kind == NONE else AttestationState.UNKNOWN_KIND
    if not verifier.verify(evidence.document, expected):
        raise PeerUntrusted("the node's attestation evidence is false or not about this session")
    return AttestationState.VERIFIED
