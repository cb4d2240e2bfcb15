"""What a cloud says about itself: the authenticated payload of the handshake's second message.

It travels sealed, so a mismatch of model or version can be told clearly without an unauthenticated error path.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TypeVar

from splitglm_core.errors import ProtocolError
from splitglm_core.plan import Codec, Precision
from splitglm_core.ranges import LayerRange
from splitglm_wire.limits import MAX_CONTEXT, MAX_LAYERS, MAX_MANIFEST_BYTES, MAX_VERSION_CHARS

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudManifest:
    """Facts a device needs before its first request.

    Attributes:
        version: version of the cloud's splitglm.
        fingerprint: 32 bytes, SHA-256 of the served checkpoint's manifest.
        layers: decoder layers that the cloud can be asked for.
        embedding: True when token ids can go up.
        head: True when the cloud can sample.
        precision: weight precision of its layers.
        codecs: codecs it accepts.
        max_context: largest number of positions of a session.
        profile: the partitioner's cloud profile as JSON text, opaque to the wire.
    """

    version: str
    fingerprint: bytes
    layers: LayerRange
    embedding: bool
    head: bool
    precision: Precision
    codecs: tuple[Codec, ...]
    max_context: int
    profile: str

    def to_bytes(self) -> bytes:
        data = json.dumps(
            {
                "version": self.version,
                "fingerprint": self.fingerprint.hex(),
                "layers": [self.layers.start, self.layers.stop],
                "embedding": self.embedding,
                "head": self.head,
                "precision": self.precision.value,
                "codecs": [c.value for c in self.codecs],
                "max_context": self.max_context,
                "profile": self.profile,
            },
            separators=(",", ":"),
        ).encode()
        if len(data) > MAX_MANIFEST_BYTES:
            raise ProtocolError(f"the manifest has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> CloudManifest:
        """Parse a peer's manifest.

        Raises:
            ProtocolError: it is too long, not JSON or not of the expected form.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise ProtocolError("the cloud's manifest is too long")
        try:
            raw = json.loads(data)
            start, stop = (_of(int, bound) for bound in raw["layers"])
            manifest = cls(
                version=_of(str, raw["version"]),
                fingerprint=bytes.fromhex(raw["fingerprint"]),
                layers=LayerRange(start, stop),
                embedding=_of(bool, raw["embedding"]),
                head=_of(bool, raw["head"]),
                precision=Precision(raw["precision"]),
                codecs=tuple(Codec(c) for c in _of(list, raw["codecs"])),
                max_context=_of(int, raw["max_context"]),
                profile=_of(str, raw["profile"]),
            )
        except Exception as error:  # any shape of malformed JSON is one and the same fault of the peer
            raise ProtocolError("the cloud's manifest is malformed", "update both sides to the same version") from error
        if not (
            len(manifest.fingerprint) == 32
            and 0 < manifest.max_context <= MAX_CONTEXT
            and manifest.layers.stop <= MAX_LAYERS
            and 0 < len(manifest.codecs) <= len(Codec)
            # The version is shown to people: no control characters for their terminal.
            and len(manifest.version) <= MAX_VERSION_CHARS
            and manifest.version.isascii()
            and manifest.version.isprintable()
        ):
            raise ProtocolError("the cloud's manifest is out of bounds", "update both sides to the same version")
        return manifest


def _of(kind: type[T], value: object) -> T:
    """``value`` if it is exactly of this JSON type (a bool is no int here)."""
    if type(value) is not kind:
        raise TypeError
    return value
