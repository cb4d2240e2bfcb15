"""A smoke test of the installed crypto backend: distributions build it differently."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VECTORS = Path(__file__).parents[1] / "vectors" / "wycheproof"


def cases(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    with gzip.open(VECTORS / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        for group in json.load(file)["testGroups"]:
            for case in group["tests"]:
                yield group, case


def field(case: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(case[name])


def test_aes_gcm_accepts_every_valid_and_rejects_every_invalid_case() -> None:
    seen: Counter[str] = Counter()
    for group, case in cases("aes_gcm"):
        if group["ivSize"] != 96:  # our nonces are 96 bits, always
            continue
        try:
            aead = AESGCM(field(case, "key"))
            sealed = field(case, "ct") + field(case, "tag")
            opened = aead.decrypt(field(case, "iv"), sealed, field(case, "aad"))
            good = opened == field(case, "msg")
        except InvalidTag:
            good = False
        assert good == (case["result"] == "valid"), case["tcId"]
        seen[case["result"]] += 1
    assert seen["valid"] >= 100 and seen["invalid"] >= 40, seen


def test_x25519_matches_or_refuses_the_zero_secret() -> None:
    seen: Counter[str] = Counter()
    for _, case in cases("x25519"):
        private = X25519PrivateKey.from_private_bytes(field(case, "private"))
        try:
            shared = private.exchange(X25519PublicKey.from_public_bytes(field(case, "public")))
        except ValueError:
            assert "ZeroSharedSecret" in case["flags"], case["tcId"]
            seen["refused"] += 1
            continue
        assert shared == field(case, "shared"), case["tcId"]
        seen["match"] += 1
    assert seen == {"match": 487, "refused": 31}


def test_hkdf_sha256_matches() -> None:
    seen: Counter[str] = Counter()
    for _, case in cases("hkdf_sha256"):
        try:
            derived = HKDF(hashes.SHA256(), case["size"], field(case, "salt"), field(case, "info")).derive(
                field(case, "ikm")
            )
            good = derived == field(case, "okm")
        except ValueError:
            good = False
        assert good == (case["result"] == "valid"), case["tcId"]
        seen[case["result"]] += 1
    assert seen == {"valid": 83, "invalid": 3}


def test_ml_kem_768_decapsulates_and_refuses_bad_lengths() -> None:
    seen: Counter[str] = Counter()
    for _, case in cases("mlkem_768"):
        try:
            private = MLKEM768PrivateKey.from_seed_bytes(field(case, "seed"))
            good = private.decapsulate(field(case, "c")) == field(case, "K")
        except ValueError:
            good = False
        assert good == (case["result"] == "valid"), case["tcId"]
        seen[case["result"]] += 1
    assert seen == {"valid": 13, "invalid": 12}
