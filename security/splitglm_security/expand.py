"""HKDF-Expand (RFC 5869) with a labelled context, in the form of TLS 1.3's HKDF-Expand-Label (RFC 8446, 7.1)."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

_PREFIX = b"splitglm1 "


def expand(secret: bytes | bytearray, label: bytes, context: bytes, size: int) -> bytes:
    """``size`` bytes (at most 255 * 32) from a uniform ``secret`` of 32 bytes; label and context are short."""
    return _expander(label, context, size).derive(secret)


def expand_into(secret: bytes | bytearray, label: bytes, context: bytes, out: bytearray) -> None:
    """As ``expand``, into a buffer that the caller can wipe."""
    _expander(label, context, len(out)).derive_into(secret, out)


def _expander(label: bytes, context: bytes, size: int) -> HKDFExpand:
    name = _PREFIX + label
    info = size.to_bytes(2, "big") + bytes([len(name)]) + name + bytes([len(context)]) + context
    return HKDFExpand(hashes.SHA256(), size, info)
