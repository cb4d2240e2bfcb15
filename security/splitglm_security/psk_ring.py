"""The pre-shared keys of a server, and which of them a device means.

The device says in its first message a *hint*: the truncated HMAC of what else it says in clear, its fresh ephemeral key
included, under a key derived from the psk. Whoever holds the psk recognises the device; to everybody else hints are
random, so they do not link two connections of one device. The hint is part of the handshake's prologue: a changed one
fails the handshake. A replayed one is recognised and is worth nothing, for message 2 can only be read with the
ephemeral key and the psk. It is no proof of either; the first record is.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from splitglm_core.errors import InputError
from splitglm_security.expand import expand
from splitglm_security.limits import HINT_BYTES, KEY_BYTES, PSK_RING_ENTRIES

_BLOCK_BYTES: Final = 64
"""Of SHA-256."""


def check_psk(psk: bytes) -> None:
    """Raises ``InputError`` unless it has the length of a pre-shared key."""
    if len(psk) != KEY_BYTES:
        raise InputError(f"a pre-shared key has {KEY_BYTES} bytes, not {len(psk)}")


def psk_hint(psk: bytes, said: bytes) -> bytes:
    """The 16-byte hint at ``psk`` for a device that says ``said`` (hello and ephemeral public key) in clear."""
    return _hint(_hint_key(psk), said)


class PskRing:
    """The keys of one server; at most 4096, because every one is tried for every handshake (about 1 us each).

    Args:
        psks: 32 bytes each, no two alike.

    Raises:
        InputError: none, too many, one of another length, or one twice.
    """

    def __init__(self, psks: Sequence[bytes]) -> None:
        if not 0 < len(psks) <= PSK_RING_ENTRIES:
            raise InputError(f"{len(psks)} pairing keys are not between 1 and {PSK_RING_ENTRIES}")
        for psk in psks:
            check_psk(psk)
        if len(set(psks)) < len(psks):
            raise InputError("two pairings have the same key", "make one for each with `splitglm keys pair`")
        self._psks = tuple(bytes(psk) for psk in psks)
        self._prepared = tuple(_prepared(_hint_key(psk)) for psk in psks)

    def __len__(self) -> int:
        return len(self._psks)

    def __getitem__(self, number: int) -> bytes:
        return self._psks[number]

    def find(self, hint: bytes, said: bytes) -> int | None:
        """Number of the key that ``hint`` means, or None. Takes as long whichever it is."""
        found = None
        for number, (inner, outer) in enumerate(self._prepared):
            inner, outer = inner.copy(), outer.copy()
            inner.update(said)
            outer.update(inner.digest())
            if hmac.compare_digest(outer.digest()[:HINT_BYTES], hint):
                found = number
        return found


def _hint_key(psk: bytes) -> bytes:
    # Of its own, so that what HMAC shows of it says nothing about the key that Noise mixes in.
    return expand(psk, b"psk hint", b"", KEY_BYTES)


def _hint(key: bytes, said: bytes) -> bytes:
    return hmac.digest(key, said, "sha256")[:HINT_BYTES]


def _prepared(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """HMAC's inner and outer hash after the key (RFC 2104): a stranger's message costs less than half."""
    padded = key.ljust(_BLOCK_BYTES, b"\0")
    return hashlib.sha256(bytes(b ^ 0x36 for b in padded)), hashlib.sha256(bytes(b ^ 0x5C for b in padded))
