"""The record layer: one numbered, authenticated, encrypted record per message, in two independent directions.

Record: ``ver u8 | type u8 | flags u16 | epoch u32 | seq u64 | len u32`` (big endian, 20 bytes), then ``len`` bytes of
AES-256-GCM ciphertext and tag. The whole header and ``ctx_dir`` (handshake hash, direction, prologue) are associated
data; the nonce is ``iv XOR seq`` and never sent. Streams are ordered, so a record is accepted only if its sequence
number *equals* the expected one: replay, reorder and drop are all the same failure, and the first failure ends the
channel.

Threads: a ``Channel`` is two halves that share no state. One thread may seal while another opens. Each half has a lock,
so a second thread in the same half can never cause a nonce to be used twice; but who calls ``seal`` from two threads
must itself send the records in the order of their numbers.

Erasure: secrets of our own are zeroed when replaced, decryption buffers when a tag fails. Copies inside Python and
OpenSSL are dropped, not erased.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from threading import Lock
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from splitglm_core.errors import InternalError, SecurityError
from splitglm_security.expand import expand, expand_into
from splitglm_security.limits import (
    ALERT_BYTES,
    HEADER_BYTES,
    KEY_BYTES,
    KEY_LIMITS,
    MAX_RECORD_BYTES,
    PROTOCOL_VERSION,
    TAG_BYTES,
    KeyLimits,
)

_HEADER: Final = struct.Struct(">BBHIQI")
_NONCE_BYTES: Final = 12


class Kind(IntEnum):
    """The type byte of a record."""

    DATA = 1
    FIN = 2  # nothing follows in this direction; the only clean end
    KEY_UPDATE = 3  # the next record of this direction is under the next key
    ALERT = 4  # the sender gives up; nothing follows and the end is not clean


@dataclass(frozen=True, slots=True)
class Opened:
    """One authentic record. ``payload`` is a fresh buffer that belongs to the receiver."""

    kind: Kind
    payload: bytearray = field(repr=False)


class _Half:
    """Keys, counters and limits of one direction.

    ``key_n, iv_n = Expand(secret_n, "key" | "iv", ctx)`` and ``secret_n+1 = Expand(secret_n, "up", ctx)``: one way, so
    the keys of finished requests cannot be had from the present secret.
    """

    def __init__(self, secret: bytes, context: bytes, max_record: int, limits: KeyLimits) -> None:
        self._lock = Lock()
        self._context = context
        self._max_record = max_record
        self._limits = limits
        self._secret = bytearray(secret)
        self._process = os.getpid()  # a forked copy would use the same nonces again
        self._aead: AESGCM | None = None
        self._epoch = 0
        self._install()

    def _install(self) -> None:
        key = bytearray(KEY_BYTES)
        expand_into(self._secret, b"key", self._context, key)
        self._aead = AESGCM(key)  # copies the key
        _wipe(key)
        self._iv = int.from_bytes(expand(self._secret, b"iv", self._context, _NONCE_BYTES), "big")
        self._sequence = 0
        self._bytes = 0

    def _ratchet(self) -> None:
        following = bytearray(KEY_BYTES)
        expand_into(self._secret, b"up", self._context, following)
        _wipe(self._secret)
        self._secret = following
        self._epoch += 1
        self._install()

    def _forget(self) -> None:
        self._aead = None
        self._iv = 0
        _wipe(self._secret)

    def discard(self) -> None:
        """Drop the keys: every later call fails."""
        with self._lock:
            self._forget()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a copy of a channel would use its nonces a second time")

    @property
    def alive(self) -> bool:
        return self._aead is not None

    @property
    def epoch(self) -> int:
        return self._epoch

    def _used_up(self, kind: int, text_bytes: int) -> bool:
        if kind != Kind.DATA:  # the last record of a key is kept for KEY_UPDATE, FIN or ALERT
            return self._sequence >= self._limits.records
        return self._sequence + 1 >= self._limits.records or self._bytes + text_bytes > self._limits.plaintext_bytes

    def _nonce(self) -> bytes:
        return (self._iv ^ self._sequence).to_bytes(_NONCE_BYTES, "big")


class _Sender(_Half):
    closed = False

    def seal(self, kind: Kind, payload: bytes | bytearray | memoryview) -> bytes:
        text = memoryview(payload).cast("B")
        limit = self._max_record if kind is Kind.DATA else ALERT_BYTES
        if len(text) > limit:
            raise InternalError(f"a {kind.name} record of {len(text)} bytes is over {limit}")
        with self._lock:
            if self.closed:
                raise InternalError(f"a {kind.name} record after the end of the channel")
            aead = self._aead
            if aead is None:
                raise SecurityError()
            if os.getpid() != self._process:
                self._forget()
                raise InternalError("a channel was used on both sides of a fork", "open a new session in the child")
            if self._used_up(kind, len(text)):
                raise InternalError("a key reached its limit", "call key_update() when needs_key_update is true")
            if kind is Kind.KEY_UPDATE and self._epoch + 1 >= self._limits.epochs:
                raise InternalError("the channel is out of key updates", "open a new session")
            record = bytearray(HEADER_BYTES + len(text) + TAG_BYTES)
            _HEADER.pack_into(record, 0, PROTOCOL_VERSION, kind, 0, self._epoch, self._sequence, len(text) + TAG_BYTES)
            nonce = self._nonce()
            # Counted before the cipher runs: whatever fails from here on, this nonce is spent.
            self._sequence += 1
            self._bytes += len(text)
            body = memoryview(record)[HEADER_BYTES:]
            aead.encrypt_into(nonce, text, bytes(record[:HEADER_BYTES]) + self._context, body)
            if kind is Kind.KEY_UPDATE:
                self._ratchet()
            elif kind is not Kind.DATA:
                self.closed = True
                self._forget()
        return bytes(record)

    @property
    def needs_key_update(self) -> bool:
        return self._sequence * 2 >= self._limits.records or self._bytes * 2 >= self._limits.plaintext_bytes


class _Receiver(_Half):
    ended: Kind | None = None

    def open(self, record: bytes | bytearray | memoryview) -> Opened | None:
        """The record's content, or None, with the keys dropped, for anything but the next authentic record."""
        with self._lock:
            opened = self._open(record)
            if opened is None:
                self._forget()
            return opened

    def _open(self, record: bytes | bytearray | memoryview) -> Opened | None:
        aead = self._aead
        size = len(record)
        # Everything that costs nothing comes before the cipher.
        if aead is None or not HEADER_BYTES + TAG_BYTES <= size <= HEADER_BYTES + self._max_record + TAG_BYTES:
            return None
        view = memoryview(record)
        header = bytes(view[:HEADER_BYTES])  # read once: what is checked is what is authenticated
        version, kind, flags, epoch, sequence, length = _HEADER.unpack(header)
        if (
            version != PROTOCOL_VERSION
            or not Kind.DATA <= kind <= Kind.ALERT
            or flags != 0
            or epoch != self._epoch
            or sequence != self._sequence
            or length != size - HEADER_BYTES
        ):
            return None
        text_bytes = length - TAG_BYTES
        if text_bytes > (self._max_record if kind == Kind.DATA else ALERT_BYTES if kind == Kind.ALERT else 0):
            return None
        if self._used_up(kind, text_bytes):
            return None
        if kind == Kind.KEY_UPDATE and self._epoch + 1 >= self._limits.epochs:
            return None
        payload = self._decrypt(aead, header, view[HEADER_BYTES:], text_bytes)
        if payload is None:
            return None
        self._sequence += 1
        self._bytes += text_bytes
        opened = Opened(Kind(kind), payload)
        if opened.kind is Kind.KEY_UPDATE:
            self._ratchet()
        elif opened.kind is not Kind.DATA:
            self.ended = opened.kind
            self._forget()
        return opened

    def _decrypt(self, aead: AESGCM, header: bytes, body: memoryview, text_bytes: int) -> bytearray | None:
        payload = bytearray(text_bytes)
        authentic = False
        try:
            aead.decrypt_into(self._nonce(), body, header + self._context, payload)
            authentic = True
        except InvalidTag:
            pass
        finally:
            # decrypt_into leaves the unauthenticated plaintext in the buffer when it raises (cryptography 50).
            if not authentic:
                _wipe(payload)
        return payload if authentic else None


class Channel:
    """Both directions of one session.

    Args:
        initiator: which side this is; gives the directions.
        keys: the two keys of Noise ``Split()``, initiator to responder first, 32 bytes each.
        handshake_hash: the final ``h``; the session's name in every key and record.
        prologue: the handshake's prologue.
        max_record: largest plaintext of a DATA record, bytes.
        limits: what one key may protect.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        keys: tuple[bytes, bytes],
        handshake_hash: bytes,
        prologue: bytes,
        max_record: int = MAX_RECORD_BYTES,
        limits: KeyLimits = KEY_LIMITS,
    ) -> None:
        agreed = hashlib.sha256(prologue).digest()
        up, down = (hashlib.sha256(handshake_hash + way + agreed).digest() for way in (b"c2s", b"s2c"))
        mine, theirs = ((keys[0], up), (keys[1], down)) if initiator else ((keys[1], down), (keys[0], up))
        self._sender = _Sender(*mine, max_record, limits)
        self._receiver = _Receiver(*theirs, max_record, limits)
        self._max_record = max_record

    def __repr__(self) -> str:
        state = "open" if self._sender.alive and self._receiver.alive else "half-closed or dead"
        return f"Channel({state}, epochs {self._sender.epoch}/{self._receiver.epoch})"

    @property
    def max_record(self) -> int:
        """Largest plaintext of one DATA record, bytes."""
        return self._max_record

    def seal(self, payload: bytes | bytearray | memoryview, kind: Kind = Kind.DATA) -> bytes:
        """One record with ``payload`` (contiguous, any item format) in it.

        Args:
            kind: DATA, or ALERT (at most 64 bytes), which ends the sending direction.

        Raises:
            InternalError: too large, after the end, of another kind, or the key is used up.
            SecurityError: the channel is dead.
        """
        if kind not in (Kind.DATA, Kind.ALERT):
            raise InternalError("FIN and KEY_UPDATE records are made by close() and key_update()")
        return self._sender.seal(kind, payload)

    def key_update(self) -> bytes:
        """A KEY_UPDATE record; what is sealed after it is under the next key, and the present one is dropped."""
        return self._sender.seal(Kind.KEY_UPDATE, b"")

    def close(self) -> bytes:
        """A FIN record, the authenticated end of the sending direction; receiving goes on."""
        return self._sender.seal(Kind.FIN, b"")

    def open(self, record: bytes | bytearray | memoryview) -> Opened:
        """The content of the peer's next record. KEY_UPDATE records take effect here; ignore their empty payload.

        Raises:
            SecurityError: it is not the peer's next record; both directions are dead from now on.
        """
        opened = self._receiver.open(record)
        if opened is None:
            self.discard()
            raise SecurityError()
        return opened

    def finish(self) -> None:
        """To be called when the transport ended.

        Raises:
            SecurityError: no FIN came before: the stream was cut, and what arrived is not the whole.
        """
        if self._receiver.ended is not Kind.FIN:
            self.discard()
            raise SecurityError()

    def discard(self) -> None:
        """Drop all keys: the session is over."""
        self._receiver.discard()
        self._sender.discard()

    @property
    def needs_key_update(self) -> bool:
        """True from half of a sending key's limit on."""
        return self._sender.needs_key_update


def _wipe(buffer: bytearray) -> None:
    buffer[:] = bytes(len(buffer))
