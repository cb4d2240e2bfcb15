"""A node's identity key, pairing codes, and the text forms in which people compare and paste them.

Text form: a prefix that ends in ``1`` and lower-case base32 (RFC 4648, no padding) of the bytes and a checksum, the
first bytes of SHA-256 over prefix and bytes. Sizes are multiples of five bytes, so there is one text per key. Parsing
forgives case, spaces and hyphens. ``sglm1`` public key, ``sglms1`` secret key (files only), ``sglmp1`` pairing code.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from splitglm_core.errors import DeviceError, InputError
from splitglm_security.files import create_private, make_private_directory, read_private
from splitglm_security.limits import KEY_BYTES, KEY_FILE_BYTES

_PUBLIC: Final = "sglm1"
_SECRET: Final = "sglms1"
_PAIRING: Final = "sglmp1"
_PAIRING_BYTES: Final = (16, 32)


class NodeKey:
    """The X25519 identity of one cloud node."""

    __slots__ = ("_private", "public")

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.public: Final = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> NodeKey:
        return cls(X25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: Path) -> NodeKey:
        """The key in ``path``; a new one is made and kept there if the file is absent.

        An existing file is never written to, whatever is in it. Of two processes that start at once, both get the
        same key.

        Raises:
            DeviceError: the file is readable by others, is not a key file, or cannot be read or made.
        """
        stored = read_private(path, KEY_FILE_BYTES)
        if stored is None:
            make_private_directory(path.parent)
            fresh = cls.generate()
            if create_private(path, _encode(_SECRET, fresh._private.private_bytes_raw()).encode() + b"\n"):
                return fresh
            stored = read_private(path, KEY_FILE_BYTES)
        secret = _decode(_SECRET, (stored or b"").decode("ascii", "replace"), (KEY_BYTES,))
        if secret is None:
            raise DeviceError(f"{path} is not a splitglm key file", "restore it from a backup, or move it away")
        return cls(X25519PrivateKey.from_private_bytes(secret))

    @property
    def private(self) -> X25519PrivateKey:
        """For the handshake only."""
        return self._private

    @property
    def text(self) -> str:
        """The public key as people see it."""
        return public_key_text(self.public)

    def __repr__(self) -> str:
        return f"NodeKey({self.text})"


def public_key_text(public: bytes) -> str:
    """``sglm1…`` of a 32-byte public key, 61 characters."""
    if len(public) != KEY_BYTES:
        raise InputError(f"a public key has {KEY_BYTES} bytes, not {len(public)}")
    return _encode(_PUBLIC, public)


def parse_public_key(text: str) -> bytes:
    """The 32 bytes of a ``sglm1…`` text.

    Raises:
        InputError: not a public key, or mistyped.
    """
    if _squeeze(text).startswith((_SECRET, _PAIRING)):
        raise InputError(
            "this is a secret, not a public key", f"give the text that starts with {_PUBLIC}; keep the other private"
        )
    key = _decode(_PUBLIC, text, (KEY_BYTES,))
    if key is None:
        raise InputError(
            "this is not a splitglm public key, or it was mistyped",
            f"copy the whole text that starts with {_PUBLIC}, as `splitglm keys show` prints it on the server",
        )
    return key


class PairingCode:
    """A random secret that a person carries from one side to the other; both sides derive the same psk from it."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) not in _PAIRING_BYTES:
            raise InputError(f"a pairing code has 16 or 32 bytes, not {len(secret)}")
        self._secret = bytes(secret)

    @classmethod
    def generate(cls, bits: int = 128) -> PairingCode:
        """A new code of 128 or 256 bits. Never made from a word: the psk would be guessed offline."""
        if bits % 8 or bits // 8 not in _PAIRING_BYTES:
            raise InputError(f"a pairing code has 128 or 256 bits, not {bits}")
        return cls(os.urandom(bits // 8))

    @classmethod
    def parse(cls, text: str) -> PairingCode:
        """The code of a ``sglmp1…`` text. The text is in no error message.

        Raises:
            InputError: not a pairing code, or mistyped.
        """
        secret = _decode(_PAIRING, text, _PAIRING_BYTES)
        if secret is None:
            raise InputError(
                "this is not a splitglm pairing code, or it was mistyped",
                f"type the whole text that starts with {_PAIRING}",
            )
        return cls(secret)

    @classmethod
    def read(cls, path: Path) -> PairingCode:
        """The code of a file as `splitglm keys pair` makes it.

        Raises:
            DeviceError: there is no such file, or others may read it.
            InputError: it does not hold a pairing code, or ``path`` is the code itself, which is not repeated.
        """
        data = read_private(path, KEY_FILE_BYTES)
        if data is None and _squeeze(path.name).startswith(_PAIRING):
            raise InputError(
                "a pairing code was given where the path of its file belongs",
                "keep it in a file with `splitglm keys pair --enter --file FILE`",
            )
        if data is None:
            raise DeviceError(f"there is no pairing file {path}", f"splitglm keys pair --file {path}")
        return cls.parse(data.decode("ascii", "replace"))

    @property
    def text(self) -> str:
        """``sglmp1…``: a secret, for a screen or a QR code, not for a log."""
        return _encode(_PAIRING, self._secret)

    def psk(self) -> bytes:
        """The 32-byte pre-shared key of ``Suite.NX_PSK``."""
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=b"splitglm/1", info=b"pairing psk").derive(self._secret)

    def __repr__(self) -> str:
        return f"PairingCode({8 * len(self._secret)} bits)"


def _checksum(prefix: str, data: bytes) -> bytes:
    # 3 bytes after 32, 4 after 16: the sum is a multiple of 5, so base32 has no spare bits.
    return hashlib.sha256(prefix.encode() + data).digest()[: 5 - len(data) % 5]


def _encode(prefix: str, data: bytes) -> str:
    return prefix + base64.b32encode(data + _checksum(prefix, data)).decode().lower()


def _squeeze(text: str) -> str:
    return "".join(text.split()).replace("-", "").lower()


def _decode(prefix: str, text: str, sizes: tuple[int, ...]) -> bytes | None:
    if len(text) > 2 * KEY_FILE_BYTES:
        return None
    squeezed = _squeeze(text)
    if not squeezed.startswith(prefix):
        return None
    try:
        raw = base64.b32decode(squeezed.removeprefix(prefix).upper())
    except (binascii.Error, ValueError):
        return None
    for size in sizes:
        data, checksum = raw[:size], raw[size:]
        if len(data) == size and hmac.compare_digest(checksum, _checksum(prefix, data)):
            return data
    return None
