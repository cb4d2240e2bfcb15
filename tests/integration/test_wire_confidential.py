"""What crosses the network is unreadable: all bytes of a session are captured and searched for what it was about.

The same searches run over the frames before they are sealed, where they must find something: a search that cannot find
anything would prove nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from pair import Pair
from running_cloud import open_agent

from splitglm_core.plan import Arm, Codec, Privacy
from splitglm_partitioner.request import Fixed
from splitglm_sims.link_emulator import LinkEmulator, run_in_thread
from splitglm_sims.shaper import LinkShape
from splitglm_wire import codec as wire_codec
from splitglm_wire import framing

PROMPT = "The heron's password is tourmaline-4711, do not tell the fishmonger about it under any circumstances."
RUN_BYTES = 16


@dataclass
class Secrets:
    """What one reply was about."""

    texts: list[bytes] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    tensors: list[np.ndarray] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)

    def text_found(self, data: bytes) -> bool:
        words = [word for text in self.texts for word in (text, *text.split()) if len(word) >= 6]
        return any(word in data for word in words)

    def ids_found(self, data: bytes) -> bool:
        """Three ids in a row, 16, 32 or 64 bits wide, either byte order."""
        threes = {tuple(ids[i : i + 3]) for ids in self.ids for i in range(len(ids) - 2)}
        threes = {three for three in threes if len(set(three)) > 1}
        return any(
            struct.pack(order + kind, *three) in data
            for three in threes
            for order in "<>"
            for kind in ("3I", "3H", "3Q")
        )

    def hidden_found(self, data: bytes) -> bool:
        """Any 16 bytes in a row of any payload that was encoded, or of the numbers before it."""
        windows = {data[i : i + RUN_BYTES] for i in range(len(data) - RUN_BYTES + 1)}
        raw = [*self.payloads, *(tensor.astype("<f4").tobytes() for tensor in self.tensors)]
        return any(
            payload[i : i + RUN_BYTES] in windows
            for payload in raw
            for i in range(len(payload) - RUN_BYTES + 1)
            if len(set(payload[i : i + RUN_BYTES])) >= 8  # zeros are in every protocol
        )

    def numbers_found(self, data: bytes) -> bool:
        """Numbers in writing, as a log or an exception would show them."""
        values = [value for tensor in self.tensors for value in tensor.reshape(-1)[:200]]
        return any(repr(float(value))[:8].encode() in data for value in values if len(repr(float(value))) >= 8)


@dataclass
class Session:
    secrets: Secrets
    wire: bytes
    frames: bytes  # before they were sealed, of both sides


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, secrets: Secrets, frames: list[bytes]) -> Iterator[None]:
    encode_frame, encode_hidden = framing.encode, wire_codec.encode

    def frame(value: object) -> bytes:
        data = encode_frame(value)  # type: ignore[arg-type]
        frames.append(data)
        return data

    def hidden(x: np.ndarray, kind: Codec, *, base: int) -> bytes:
        payload = encode_hidden(x, kind, base=base)
        secrets.tensors.append(x.copy())
        secrets.payloads.append(payload)
        return payload

    with monkeypatch.context() as patch:
        patch.setattr(framing, "encode", frame)
        patch.setattr(wire_codec, "encode", hidden)
        yield


def record(pair: Pair, monkeypatch: pytest.MonkeyPatch, arm: Arm, codec: Codec, privacy: Privacy) -> Session:
    wire: list[bytes] = []
    frames: list[bytes] = []
    secrets = Secrets()
    shape = LinkShape(delay_s=0.0)
    link = LinkEmulator("127.0.0.1", pair.cloud.port, shape, shape, tap=lambda _way, _number, data: wire.append(data))
    cut = {Arm.CLOUD: Fixed(arm=arm), Arm.SPLIT: Fixed(arm=arm, s=2), Arm.USHAPE: Fixed(arm=arm, s=2, t=4)}[arm]
    with run_in_thread(link), watched(monkeypatch, secrets, frames):
        address = f"127.0.0.1:{link.port}"
        with open_agent(pair.model, pair.home, pair.cloud, address=address) as agent:
            generation = agent.generate(
                PROMPT, max_tokens=24, fixed=cut, codecs=(codec,), privacy=privacy, ignore_eos=True
            )
            answer = generation.result()
            secrets.texts += [PROMPT.encode(), answer.encode()]
            secrets.ids += [list(generation.prompt), generation.token_ids]
    return Session(secrets, b"".join(wire), b"".join(frames))


CASES = [
    (Arm.CLOUD, Codec.FP32, Privacy.OPEN),
    (Arm.SPLIT, Codec.FP32, Privacy.NO_PROMPT),
    (Arm.SPLIT, Codec.INT8, Privacy.NO_PROMPT),
    (Arm.USHAPE, Codec.BF16, Privacy.NO_TEXT),
    (Arm.USHAPE, Codec.INT8, Privacy.NO_TEXT),
    (Arm.USHAPE, Codec.FP32, Privacy.NO_TEXT),
]


@pytest.mark.parametrize(("arm", "codec", "privacy"), CASES, ids=lambda value: value.value)
def test_no_content_can_be_read_from_the_wire(
    glm: Pair, monkeypatch: pytest.MonkeyPatch, arm: Arm, codec: Codec, privacy: Privacy
) -> None:
    session = record(glm, monkeypatch, arm, codec, privacy)
    secrets, wire = session.secrets, session.wire
    assert len(wire) > len(session.frames)  # everything passed the tap, and sealing adds to it
    assert not secrets.text_found(wire)
    assert not secrets.ids_found(wire)
    assert not secrets.hidden_found(wire)
    assert not secrets.numbers_found(wire)
    # The same searches where there is something to find.
    assert secrets.text_found(wire + PROMPT.encode())
    assert (
        secrets.numbers_found(wire + repr([float(x) for x in secrets.tensors[0][0]]).encode())
        if secrets.tensors
        else True
    )
    assert secrets.ids_found(session.frames) is (arm is Arm.CLOUD)
    assert secrets.hidden_found(session.frames) is (arm is not Arm.CLOUD)


@pytest.mark.parametrize("codec", [Codec.BF16, Codec.INT8])
def test_a_no_text_request_sends_no_ids_even_inside_the_seal(
    glm: Pair, monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    session = record(glm, monkeypatch, Arm.USHAPE, codec, Privacy.NO_TEXT)
    answer = session.secrets.ids[1]
    assert len(answer) == 24
    assert not session.secrets.ids_found(session.frames)
    assert not session.secrets.text_found(session.frames)


def test_every_answered_token_has_the_same_size_on_the_wire(glm: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes must say nothing about content: one size per token, whatever the token is."""
    session = record(glm, monkeypatch, Arm.CLOUD, Codec.FP32, Privacy.OPEN)
    assert session.secrets.ids[1]
    frames: list[bytes] = []
    with watched(monkeypatch, Secrets(), frames):
        glm.agent.generate(
            PROMPT, max_tokens=24, fixed=Fixed(arm=Arm.CLOUD), privacy=Privacy.OPEN, ignore_eos=True
        ).result()
    results = [len(data) for data in frames if data[0] == framing.Kind.RESULT]
    assert len(results) == 24 and len(set(results)) == 1
