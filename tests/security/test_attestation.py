"""The attestation hook: none is never ok, required is closed, evidence belongs to one session."""

from __future__ import annotations

import hashlib

import pytest

from splitglm_core.errors import PeerUntrusted
from splitglm_security.attestation import (
    AttestationPolicy,
    AttestationState,
    Evidence,
    NullAttester,
    judge,
    report_data,
)
from splitglm_security.handshake import Hello, Initiator, Responder, Suite
from splitglm_security.keys import NodeKey

EXPECTED = report_data(bytes(32), bytes(32))


class EchoVerifier:
    """A toy kind of evidence for these tests: the document is a hash of the report data."""

    def verify(self, document: bytes, report_data: bytes) -> bool:
        return document == hashlib.sha256(report_data).digest()


VERIFIERS = {"echo": EchoVerifier()}
TRUE = Evidence(kind="echo", document=hashlib.sha256(EXPECTED).digest())


def test_a_node_without_hardware_says_none() -> None:
    evidence = NullAttester().evidence(EXPECTED)
    assert evidence == Evidence(kind="none", document=b"")
    assert judge(AttestationPolicy.PREFERRED, evidence, EXPECTED, VERIFIERS) is AttestationState.NONE


@pytest.mark.parametrize(
    "evidence", [Evidence(kind="none"), Evidence(kind="none", document=b"ok"), Evidence(kind="tdx"), Evidence(kind="")]
)
def test_required_and_absent_is_closed(evidence: Evidence) -> None:
    with pytest.raises(PeerUntrusted):
        judge(AttestationPolicy.REQUIRED, evidence, EXPECTED, VERIFIERS)
    assert judge(AttestationPolicy.PREFERRED, evidence, EXPECTED, VERIFIERS) is not AttestationState.VERIFIED


def test_not_even_a_verifier_of_that_name_makes_none_good() -> None:
    class Credulous:
        def verify(self, document: bytes, report_data: bytes) -> bool:
            return True

    with pytest.raises(PeerUntrusted):
        judge(AttestationPolicy.REQUIRED, Evidence(kind="none"), EXPECTED, {"none": Credulous()})


def test_true_evidence_is_verified_and_false_evidence_refused() -> None:
    false = Evidence(kind="echo", document=hashlib.sha256(EXPECTED[:-1] + b"x").digest())
    for policy in (AttestationPolicy.REQUIRED, AttestationPolicy.PREFERRED):
        assert judge(policy, TRUE, EXPECTED, VERIFIERS) is AttestationState.VERIFIED
        with pytest.raises(PeerUntrusted):
            judge(policy, false, EXPECTED, VERIFIERS)
    assert judge(AttestationPolicy.OFF, false, EXPECTED, VERIFIERS) is AttestationState.NOT_CHECKED


def test_evidence_of_one_session_is_worth_nothing_in_another() -> None:
    node = NodeKey.generate()
    reports = []
    for _ in range(2):
        initiator = Initiator(Hello(suite=Suite.NX, model_fingerprint=bytes(32)))
        responder = Responder(node)
        responder.accept(initiator.first_message())
        mine = report_data(node.public, responder.attestation_hash)
        assert mine == report_data(node.public, initiator.attestation_hash) and len(mine) == 64
        reports.append(mine)
    recorded = Evidence(kind="echo", document=hashlib.sha256(reports[0]).digest())
    assert judge(AttestationPolicy.REQUIRED, recorded, reports[0], VERIFIERS) is AttestationState.VERIFIED
    with pytest.raises(PeerUntrusted):
        judge(AttestationPolicy.REQUIRED, recorded, reports[1], VERIFIERS)
    assert report_data(NodeKey.generate().public, initiator.attestation_hash) != reports[1]
