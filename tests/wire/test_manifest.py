"""A cloud's manifest: what one side says the other side reads, and nothing else gets through."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import ProtocolError
from splitglm_core.plan import Codec, Precision
from splitglm_core.ranges import LayerRange
from splitglm_wire.limits import MAX_CONTEXT, MAX_LAYERS, MAX_MANIFEST_BYTES
from splitglm_wire.manifest import CloudManifest

GOOD = CloudManifest(
    version="0.1.0",
    fingerprint=bytes(range(32)),
    layers=LayerRange(0, 30),
    embedding=True,
    head=False,
    precision=Precision.INT8,
    codecs=(Codec.BF16, Codec.INT8),
    max_context=8192,
    profile='{"layers":30,"name":"é"}',
)


def changed(**fields: Any) -> bytes:
    raw = json.loads(GOOD.to_bytes())
    return json.dumps(raw | fields).encode()


@given(
    start=st.integers(0, MAX_LAYERS),
    count=st.integers(0, 100),
    flags=st.tuples(st.booleans(), st.booleans()),
    precision=st.sampled_from(Precision),
    codecs=st.lists(st.sampled_from(Codec), min_size=1, max_size=3, unique=True),
    context=st.integers(1, MAX_CONTEXT),
    fingerprint=st.binary(min_size=32, max_size=32),
    profile=st.text(max_size=200),
)
def test_a_manifest_comes_back_as_it_was(
    start: int,
    count: int,
    flags: tuple[bool, bool],
    precision: Precision,
    codecs: list[Codec],
    context: int,
    fingerprint: bytes,
    profile: str,
) -> None:
    manifest = CloudManifest(
        version="1.2.3",
        fingerprint=fingerprint,
        layers=LayerRange(start, min(MAX_LAYERS, start + count)),
        embedding=flags[0],
        head=flags[1],
        precision=precision,
        codecs=tuple(codecs),
        max_context=context,
        profile=profile,
    )
    assert CloudManifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 1},
        {"version": "x" * 65},
        {"version": "0.1\x1b[2J"},
        {"version": "0.1\n"},
        {"version": "0.1\u202e"},
        {"fingerprint": "00" * 31},
        {"fingerprint": "00" * 33},
        {"fingerprint": "zz" * 32},
        {"fingerprint": None},
        {"layers": [0]},
        {"layers": [0, 1, 2]},
        {"layers": [5, 3]},
        {"layers": [-1, 3]},
        {"layers": [0, MAX_LAYERS + 1]},
        {"layers": [0, 10**30]},
        {"layers": ["0", "3"]},
        {"layers": [0.0, 3.0]},
        {"layers": [False, True]},
        {"layers": "03"},
        {"embedding": "no"},
        {"embedding": 1},
        {"head": None},
        {"precision": "fp8"},
        {"precision": ["int8"]},
        {"codecs": []},
        {"codecs": ["zip"]},
        {"codecs": "bf16"},
        {"codecs": {"bf16": 1}},
        {"codecs": ["bf16"] * 4},
        {"max_context": 0},
        {"max_context": -1},
        {"max_context": MAX_CONTEXT + 1},
        {"max_context": "8192"},
        {"max_context": 8192.0},
        {"max_context": True},
        {"max_context": 1e999},
        {"profile": {"layers": 30}},
        {"profile": None},
    ],
    ids=str,
)
def test_a_field_of_another_type_or_out_of_bounds_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as caught:
        CloudManifest.from_bytes(changed(**fields))
    assert caught.value.hint


@pytest.mark.parametrize("field", json.loads(GOOD.to_bytes()))
def test_every_field_is_needed(field: str) -> None:
    raw = json.loads(GOOD.to_bytes())
    del raw[field]
    with pytest.raises(ProtocolError):
        CloudManifest.from_bytes(json.dumps(raw).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b"\xff\xfe\x00",
        b"\x80\x04\x95\x10\x00",
        b"[" * MAX_MANIFEST_BYTES,
        b'{"a":' * 800,
        b" " * (MAX_MANIFEST_BYTES + 1),
        b'{"max_context":' + b"9" * 4000 + b"}",
    ],
    ids=range(11),
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        CloudManifest.from_bytes(data)


def test_a_manifest_too_long_is_neither_sent_nor_read() -> None:
    with pytest.raises(ProtocolError):
        replace(GOOD, profile="x" * MAX_MANIFEST_BYTES).to_bytes()
    with pytest.raises(ProtocolError):
        CloudManifest.from_bytes(changed(profile="x" * MAX_MANIFEST_BYTES))


def test_fields_of_a_later_release_are_ignored() -> None:
    assert CloudManifest.from_bytes(changed(colour="green")) == GOOD


def test_mutated_manifests_are_refused_or_are_manifests() -> None:
    rng = random.Random(4)
    good = GOOD.to_bytes()
    taken = 0
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice((rng.randrange(256), ord(rng.choice('{}[]",:0e-'))))
        try:
            manifest = CloudManifest.from_bytes(bytes(data))
        except ProtocolError:
            continue
        taken += 1
        assert CloudManifest.from_bytes(manifest.to_bytes()) == manifest
    assert 0 < taken < 4000
