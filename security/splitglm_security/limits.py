"""Every bound of the security room in one place. All sizes are bytes unless the name says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PROTOCOL_VERSION: Final = 3

# Primitives
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
KEM_PUBLIC_BYTES: Final = 1184  # ML-KEM-768 encapsulation key (FIPS 203, table 3)
KEM_CIPHERTEXT_BYTES: Final = 1088  # ML-KEM-768 ciphertext

# Handshake
NOISE_MESSAGE_BYTES: Final = 65535  # Noise rev 34, section 3: no handshake message is longer
FINGERPRINT_BYTES: Final = 32
MANIFEST_BYTES: Final = 4096  # payload of message 2
HINT_BYTES: Final = 16  # which pre-shared key a device means; by chance one of 4096 keys matches once in 2**116
PSK_RING_ENTRIES: Final = 4096  # each is tried for each handshake: together a few milliseconds

# Records
HEADER_BYTES: Final = 20
MAX_RECORD_BYTES: Final = 1 << 20  # plaintext of one record
MIN_RECORD_BYTES: Final = 1 << 10  # a smaller negotiated maximum would only be a way to make the peer work
ALERT_BYTES: Final = 64

# Files
KEY_FILE_BYTES: Final = 1 << 10
PIN_FILE_BYTES: Final = 1 << 20
ADDRESS_CHARACTERS: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """What one AES-256-GCM key may protect before a key update.

    The defaults keep the attacker's advantage over an ideal cipher below 2**-65 (2**36 bytes are 2**32 blocks, against
    a block size of 2**128); see NIST SP 800-38D section 8.3 and RFC 9147 appendix B for the reasoning.

    Attributes:
        records: records sealed or opened under one key.
        plaintext_bytes: bytes of plaintext under one key.
        epochs: key updates in one direction; the epoch is a u32 on the wire.
    """

    records: int = 1 << 32
    plaintext_bytes: int = 1 << 36
    epochs: int = 1 << 32


KEY_LIMITS: Final = KeyLimits()

# Admission (rate and burst as in WireGuard's Go implementation, ratelimiter.go)
HANDSHAKES_PER_PEER_PER_S: Final = 20.0
HANDSHAKE_BURST: Final = 5
PEER_TABLE_ENTRIES: Final = 4096
HALF_OPEN_TOTAL: Final = 64
HALF_OPEN_PER_PEER: Final = 16  # one address alone cannot hold every half-open place
HALF_OPEN_DEADLINE_S: Final = 5.0
