"""Which public key belongs to which address: pins, trust on first use, or one key given by hand.

A cloud node proves possession of its key in the handshake; that the key is the *right* one is decided here, on the
device. A changed key is refused under every policy: the person must say that it is wanted.
"""

from __future__ import annotations

import hmac
import json
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from splitglm_core.errors import DeviceError, InputError, PeerUntrusted
from splitglm_security.files import locked, make_private_directory, read_private, replace_private
from splitglm_security.keys import parse_public_key, public_key_text
from splitglm_security.limits import ADDRESS_CHARACTERS, KEY_BYTES, PIN_FILE_BYTES

_FORMAT: Final = "splitglm-pins-1"
# Addresses appear in commands that people copy, so nothing that a shell or a terminal would act on.
_ADDRESS: Final = re.compile(r"[a-z0-9\[/][a-z0-9._:\[\]%/-]*")
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True, slots=True)
class Pin:
    """A key that was accepted for an address, and the ISO date of that."""

    key: bytes
    first_seen: str


class PinStore:
    """Pins in one JSON file, ``{"format": …, "pins": {address: {"key": "sglm1…", "first_seen": "YYYY-MM-DD"}}}``.

    Every call reads the file, so processes see each other's pins; changes are made under a lock and replace the file
    whole. An unreadable file is an error, never an empty store: forgetting the pins would be trusting anybody.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def all(self) -> dict[str, Pin]:
        """Every pin by address.

        Raises:
            DeviceError: the file is damaged, or others may read or change it.
        """
        data = read_private(self._path, PIN_FILE_BYTES)
        if data is None:
            return {}
        try:
            document = json.loads(data)
            if not isinstance(document, dict) or set(document) != {"format", "pins"} or document["format"] != _FORMAT:
                raise ValueError("not a pin file")
            return {_address(address): _parse_pin(entry) for address, entry in document["pins"].items()}
        except (ValueError, TypeError, AttributeError, RecursionError, InputError):
            pass
        raise DeviceError(
            f"{self._path} is damaged", "restore it from a backup, or move it away and pin the keys again"
        )

    def get(self, address: str) -> Pin | None:
        return self.all().get(_address(address))

    def pin(self, address: str, key: bytes, *, on_date: str) -> None:
        """Accept ``key`` (32 bytes) for ``address`` from now on, whatever was there before."""
        self._put(address, key, on_date, replace=True)

    def pin_if_absent(self, address: str, key: bytes, *, on_date: str) -> Pin:
        """Accept ``key`` unless the address has a pin already; the pin that holds afterwards."""
        return self._put(address, key, on_date, replace=False)

    def remove(self, address: str) -> bool:
        """Forget an address; False if it was unknown."""
        with self._changing():
            pins = self.all()
            if pins.pop(_address(address), None) is None:
                return False
            self._write(pins)
            return True

    def _put(self, address: str, key: bytes, on_date: str, *, replace: bool) -> Pin:
        if not _DATE.fullmatch(on_date):
            raise InputError(f"{on_date!r} is not a date of the form YYYY-MM-DD")
        if len(key) != KEY_BYTES:
            raise InputError(f"a public key has {KEY_BYTES} bytes, not {len(key)}")
        name = _address(address)
        with self._changing():
            pins = self.all()
            if not replace and name in pins:
                return pins[name]
            pins[name] = Pin(bytes(key), on_date)
            self._write(pins)
            return pins[name]

    def _changing(self) -> AbstractContextManager[None]:
        make_private_directory(self._path.parent)
        return locked(self._path)

    def _write(self, pins: dict[str, Pin]) -> None:
        entries = {
            address: {"key": public_key_text(pin.key), "first_seen": pin.first_seen}
            for address, pin in sorted(pins.items())
        }
        text = json.dumps({"format": _FORMAT, "pins": entries}, indent=2)
        if len(text) >= PIN_FILE_BYTES:
            raise DeviceError(f"{self._path} is full", "remove pins that are no longer needed")
        replace_private(self._path, text.encode() + b"\n")


class TrustPolicy(Enum):
    """What to do with an address that has no pin."""

    PINNED = "pinned"
    TRUST_ON_FIRST_USE = "first-use"


class Verdict(Enum):
    """Why a key was accepted; FIRST_USE is worth telling the person."""

    EXPLICIT = "explicit"
    PINNED = "pinned"
    FIRST_USE = "first-use"


class Trust:
    """The decision about a peer's key.

    Args:
        store: the pins.
        policy: for addresses without a pin.
        explicit_key: if given, exactly this key (32 bytes) is accepted, whatever the pins say, and nothing is stored.
    """

    def __init__(self, store: PinStore, policy: TrustPolicy, *, explicit_key: bytes | None = None) -> None:
        if explicit_key is not None and len(explicit_key) != KEY_BYTES:
            raise InputError(f"a public key has {KEY_BYTES} bytes, not {len(explicit_key)}")
        self._store = store
        self._policy = policy
        self._explicit_key = explicit_key

    def check(self, address: str, remote_static: bytes | None, *, on_date: str) -> Verdict:
        """Accept or refuse the key that a peer proved to hold.

        Args:
            address: as the person wrote it, ``host:port``; compared in lower case.
            remote_static: ``Established.remote_static``.
            on_date: today as ``YYYY-MM-DD``, kept with a first use.

        Raises:
            PeerUntrusted: unknown under PINNED, or not the expected key.
            DeviceError: the pins cannot be read or written.
        """
        name = _address(address)
        if remote_static is None or len(remote_static) != KEY_BYTES:
            raise PeerUntrusted(f"{name} presented no key")
        if self._explicit_key is not None:
            _require(name, self._explicit_key, remote_static, "given")
            return Verdict.EXPLICIT
        pin = self._store.get(name)
        if pin is not None:
            _require(name, pin.key, remote_static, f"pinned since {pin.first_seen}")
            return Verdict.PINNED
        if self._policy is TrustPolicy.PINNED:
            raise PeerUntrusted(
                f"no key is pinned for {name}; it presented {public_key_text(remote_static)}",
                _compare_then_pin(name, remote_static),
            )
        # Another process may have met another key in the meantime: the first one holds.
        held = self._store.pin_if_absent(name, remote_static, on_date=on_date)
        _require(name, held.key, remote_static, f"pinned since {held.first_seen}")
        return Verdict.FIRST_USE


def _require(name: str, expected: bytes, presented: bytes, how: str) -> None:
    if not hmac.compare_digest(expected, presented):
        raise PeerUntrusted(
            f"{name} presented the key {public_key_text(presented)}, but {public_key_text(expected)} is {how}; "
            "somebody may be in between",
            _compare_then_pin(name, presented),
        )


def _compare_then_pin(name: str, presented: bytes) -> str:
    return (
        "compare it with what `splitglm keys show` prints on the server; only if they are equal: "
        f"splitglm keys pin {name} {public_key_text(presented)}"
    )


def _address(address: str) -> str:
    name = address.strip().lower()
    if len(name) > ADDRESS_CHARACTERS or not _ADDRESS.fullmatch(name):
        raise InputError("this is not an address", "give it as host:port")
    return name


def _parse_pin(entry: object) -> Pin:
    if not isinstance(entry, dict) or set(entry) != {"key", "first_seen"}:
        raise ValueError("not a pin")
    first_seen = entry["first_seen"]
    if not isinstance(first_seen, str) or not _DATE.fullmatch(first_seen) or not isinstance(entry["key"], str):
        raise ValueError("not a pin")
    return Pin(parse_public_key(entry["key"]), first_seen)
