"""The schema and its committed stubs: one opaque field, one method, and exactly what the schema generates."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from splitglm_wire.v1 import split_pb2, split_pb2_grpc

PROTO = Path(__file__).parents[2] / "proto"
SCHEMA = PROTO / "splitglm_wire" / "v1" / "split.proto"


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_the_committed_stubs_are_what_the_schema_generates(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs, str(SCHEMA)]
    subprocess.run(command, check=True, capture_output=True)
    generated = {file.relative_to(tmp_path): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    committed = {file.relative_to(PROTO): file.read_bytes() for file in SCHEMA.parent.glob("split_pb2*")}
    assert sorted(generated) == sorted(committed)
    assert generated == committed, "run `make proto`"


def test_the_outer_wire_is_one_opaque_field() -> None:
    """Whatever else stood in the schema would travel outside the sealed record."""
    messages = split_pb2.DESCRIPTOR.message_types_by_name
    assert list(messages) == ["Sealed"]
    assert [(field.name, field.type) for field in messages["Sealed"].fields] == [("frame", 12)]  # 12: bytes


def test_the_service_is_one_stream_both_ways() -> None:
    service = split_pb2.DESCRIPTOR.services_by_name["SplitInference"]
    assert list(split_pb2.DESCRIPTOR.services_by_name) == ["SplitInference"]
    methods = [(m.name, m.client_streaming, m.server_streaming) for m in service.methods]
    assert methods == [("Connect", True, True)]
    assert hasattr(split_pb2_grpc, "SplitInferenceServicer")


def test_bytes_survive_the_envelope_and_an_unknown_field_adds_nothing() -> None:
    data = bytes(range(256))
    sealed = split_pb2.Sealed.FromString(split_pb2.Sealed(frame=data).SerializeToString())
    assert sealed.frame == data
    with_more = split_pb2.Sealed(frame=data).SerializeToString() + b"\x12\x03abc"
    assert split_pb2.Sealed.FromString(with_more).frame == data
