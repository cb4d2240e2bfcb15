"""No secret in the text of any object or exception of this room, and no import that a pure room must not have."""

from __future__ import annotations

import ast
import base64
import copy
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import splitglm_security
from splitglm_core.errors import SplitGlmError
from splitglm_security.channel import Kind, Opened
from splitglm_security.handshake import Established, Hello, Initiator, Responder, Suite
from splitglm_security.keys import NodeKey, PairingCode, parse_public_key
from splitglm_security.psk_ring import PskRing

ROOM = Path(splitglm_security.__file__).parent
TEXT = b"the patient said that it hurts"
NODE_SECRET, CODE_SECRET, EPHEMERAL, KEM = (bytes([i]) * 7 + bytes(range(i, i + 25)) for i in (11, 22, 33, 44))


def forms(secret: bytes) -> Iterator[str]:
    """How a secret could show in text: whole or any 8 bytes of it."""
    for start in range(0, len(secret) - 7, 4):
        part = secret[start : start + 8]
        yield from (part.hex(), repr(part)[2:-1], ", ".join(map(str, part)), part.decode("latin-1"))
    yield base64.b64encode(secret).decode()[:20]
    yield base64.b32encode(secret).decode().lower()[:20]


@pytest.fixture(scope="module")
def session() -> tuple[Initiator, Responder, Established, Established, dict[str, bytes], list[object]]:
    node = NodeKey(X25519PrivateKey.from_private_bytes(NODE_SECRET))
    code = PairingCode(CODE_SECRET)
    hello = Hello(suite=Suite.NX_PSK, model_fingerprint=bytes(32))
    initiator = Initiator._with_ephemerals(
        hello,
        psk=code.psk(),
        ephemeral=X25519PrivateKey.from_private_bytes(EPHEMERAL),
        kem_ephemeral=MLKEM768PrivateKey.from_seed_bytes(KEM * 2),
    )
    responder = Responder(node, psks=PskRing([code.psk()]))
    responder.accept(initiator.first_message())
    message, cloud = responder.reply(TEXT)
    device = initiator.finish(message)
    secrets = {
        "node key": NODE_SECRET,
        "pairing code": CODE_SECRET,
        "psk": code.psk(),
        "ephemeral": EPHEMERAL,
        "kem seed": KEM * 2,
        "exporter": device.exporter,
        "upward secret": bytes(device.channel._sender._secret),
        "downward secret": bytes(device.channel._receiver._secret),
        "plaintext": TEXT,
    }
    objects: list[object] = [node, code, initiator, responder, device, cloud, device.channel, hello]
    objects += [device.channel._sender, device.channel._receiver, initiator._noise, initiator._noise._symmetric]
    objects += [initiator._noise._symmetric.cipher, Opened(Kind.DATA, bytearray(TEXT))]
    return initiator, responder, device, cloud, secrets, objects


def test_no_object_shows_a_secret(session: tuple) -> None:
    *_, secrets, objects = session
    for thing in objects:
        for text in (repr(thing), str(thing), f"{thing}", repr([thing]), repr({"x": thing})):
            for name, secret in secrets.items():
                for form in forms(secret):
                    assert form not in text, (type(thing).__name__, name)


def test_the_search_for_secrets_would_find_one(session: tuple) -> None:
    *_, secrets, _ = session
    for secret in secrets.values():
        for leak in (repr(secret), secret.hex(), str(bytearray(secret)), str(list(secret))):
            assert any(form in leak for form in forms(secret))


def provocations(session: tuple, tmp_path: Path) -> Iterator[Callable[[], object]]:
    initiator, responder, device, cloud, *_ = session
    code = PairingCode(CODE_SECRET)
    yield lambda: initiator.finish(TEXT)
    yield lambda: initiator.first_message()
    yield lambda: responder.reply(TEXT)
    yield lambda: responder.accept(TEXT)
    yield lambda: responder.reply(TEXT * 1000)
    yield lambda: cloud.channel.seal(TEXT * 100_000)
    yield lambda: cloud.channel.seal(TEXT, Kind.FIN)
    yield lambda: cloud.channel.seal(TEXT * 10, Kind.ALERT)
    yield lambda: device.channel.open(cloud.channel.seal(TEXT)[:-1] + b"\0")
    yield lambda: device.channel.open(TEXT)
    yield lambda: device.channel.finish()
    yield lambda: device.channel.seal(TEXT)
    yield lambda: Initiator(Hello(suite=Suite.NX, model_fingerprint=bytes(32)), psk=code.psk())
    yield lambda: Initiator(Hello(suite=Suite.NX_PSK, model_fingerprint=bytes(32)), psk=code.psk()[:-1])
    yield lambda: PskRing([CODE_SECRET + b"x"])
    yield lambda: PairingCode(CODE_SECRET + b"x")
    yield lambda: PairingCode.parse(code.text[:-1])
    yield lambda: PairingCode.parse(code.text + "a")
    yield lambda: parse_public_key(code.text)

    def damaged() -> object:
        path = tmp_path / "node.key"
        path.write_text("sglms1" + base64.b32encode(NODE_SECRET).decode().lower())
        path.chmod(0o600)
        return NodeKey.load_or_create(path)

    yield damaged


def test_no_exception_shows_a_secret(session: tuple, tmp_path: Path) -> None:
    secrets = session[4]
    provoked = 0
    for provoke in provocations(session, tmp_path):
        with pytest.raises(SplitGlmError) as raised:
            provoke()
        error = raised.value
        text = "".join(traceback.format_exception(error)) + repr(error) + error.one_line()
        for name, secret in secrets.items():
            for form in forms(secret):
                assert form not in text, (text, name)
        provoked += 1
    assert provoked == 20


def test_what_holds_keys_cannot_be_copied_or_pickled() -> None:
    """A second copy of a channel would use its nonces a second time."""
    initiator = Initiator(Hello(suite=Suite.NX, model_fingerprint=bytes(32)))
    responder = Responder(NodeKey.generate())
    responder.accept(initiator.first_message())
    message, cloud = responder.reply(b"")
    device = initiator.finish(message)
    for half in (device.channel._sender, device.channel._receiver):
        for duplicate in (copy.copy, copy.deepcopy, lambda half: half.__reduce_ex__(4)):
            with pytest.raises(TypeError):
                duplicate(half)
    for thing in (device.channel, cloud):
        with pytest.raises(TypeError):
            copy.deepcopy(thing)


def test_the_room_imports_nothing_but_pure_modules() -> None:
    allowed = {"__future__", "base64", "binascii", "collections", "contextlib", "dataclasses", "enum", "errno"}
    allowed |= {
        "fcntl",
        "functools",
        "hashlib",
        "hmac",
        "ipaddress",
        "json",
        "os",
        "pathlib",
        "re",
        "stat",
        "struct",
        "threading",
    }
    allowed |= {"typing", "cryptography", "splitglm_core", "splitglm_security"}
    files = sorted(ROOM.rglob("*.py"))
    assert len(files) >= 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Assert):
                raise AssertionError(f"{file.name}:{node.lineno} checks with assert, which -O removes")
            assert {name.split(".")[0] for name in names} <= allowed, (file.name, names)


def test_secrets_are_never_compared_with_equals() -> None:
    """Tags are checked by the library; what we compare ourselves goes through compare_digest."""
    for file in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                for side in (node.left, *node.comparators):
                    name = side.id if isinstance(side, ast.Name) else getattr(side, "attr", "")
                    assert not any(word in name for word in ("psk", "secret", "exporter", "checksum", "key_bytes")), (
                        file.name,
                        node.lineno,
                    )
