"""Noise protocol names: which tokens each message holds (Noise rev 34, sections 7 to 9, and the HFS draft)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from splitglm_core.errors import InternalError

# Section 7.5: initiator's pre-message, responder's pre-message, messages in turn.
_PATTERNS: Final[dict[str, tuple[str, str, tuple[str, ...]]]] = {
    "NN": ("", "", ("e", "e ee")),
    "NK": ("", "s", ("e es", "e ee")),
    "NX": ("", "", ("e", "e ee s es")),
    "XN": ("", "", ("e", "e ee", "s se")),
    "XK": ("", "s", ("e es", "e ee", "s se")),
    "XX": ("", "", ("e", "e ee s es", "s se")),
    "KN": ("s", "", ("e", "e ee se")),
    "KK": ("s", "s", ("e es ss", "e ee se")),
    "KX": ("s", "", ("e", "e ee se s es")),
    "IN": ("", "", ("e s", "e ee se")),
    "IK": ("", "s", ("e es s ss", "e ee se")),
    "IX": ("", "", ("e s", "e ee se s es")),
}
_HASHES: Final = {"SHA256": "sha256", "SHA512": "sha512", "BLAKE2s": "blake2s", "BLAKE2b": "blake2b"}
_DH_TOKENS: Final = frozenset({"ee", "es", "se", "ss"})


@dataclass(frozen=True, slots=True)
class Protocol:
    """A parsed protocol name: what each message consists of and which functions serve it."""

    name: str
    premessages: tuple[str, str]
    messages: tuple[tuple[str, ...], ...]
    cipher: str
    hash_name: str

    @property
    def uses_psk(self) -> bool:
        return any("psk" in message for message in self.messages)


@lru_cache(maxsize=64)
def parse_protocol(name: str) -> Protocol:
    """Section 8: ``Noise_<pattern><modifiers>_<dh>_<cipher>_<hash>``.

    Raises:
        InternalError: a name that this module does not implement (names are our own constants, never peer input).
    """
    try:
        prefix, handshake, dh, cipher, hash_function = name.split("_")
        base = handshake[: next((i for i, c in enumerate(handshake) if not c.isupper()), len(handshake))]
        modifiers = [m for m in handshake[len(base) :].split("+") if m]
        first, second, pattern = _PATTERNS[base]
        hash_name = _HASHES[hash_function]
    except (ValueError, KeyError):
        raise InternalError(f"unknown Noise protocol {name!r}") from None
    hfs = "hfs" in modifiers
    if prefix != "Noise" or cipher not in ("AESGCM", "ChaChaPoly") or dh != ("25519+MLKEM768" if hfs else "25519"):
        raise InternalError(f"unknown Noise protocol {name!r}")
    messages = [message.split() for message in pattern]
    if hfs:
        _insert_hfs(messages)
    for modifier in modifiers:
        if modifier == "hfs":
            continue
        place = modifier.removeprefix("psk")
        if place == modifier or not place.isdecimal() or int(place) > len(messages):
            raise InternalError(f"unknown Noise modifier {modifier!r}")
        # Section 9.4: psk0 goes to the start of the first message, pskN to the end of the Nth message.
        if int(place) == 0:
            messages[0].insert(0, "psk")
        else:
            messages[int(place) - 1].append("psk")
    return Protocol(name, (first, second), tuple(tuple(m) for m in messages), cipher, hash_name)


def _insert_hfs(messages: list[list[str]]) -> None:
    """Draft HFS: ``e1`` follows the first ``e``, or that message's first DH; ``ekem1`` follows the first ``ee``."""
    first = next(message for message in messages if "e" in message)
    after_dh = [i for i, token in enumerate(first) if token in _DH_TOKENS]
    first.insert((after_dh[0] if after_dh else first.index("e")) + 1, "e1")
    answer = next(message for message in messages if "ee" in message)
    answer.insert(answer.index("ee") + 1, "ekem1")
