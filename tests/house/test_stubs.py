"""The committed protobuf stubs are what the committed schema generates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROTO = Path(__file__).parents[2] / "proto"


@pytest.mark.parametrize("schema", sorted(PROTO.rglob("*.proto")), ids=lambda schema: schema.name)
def test_generating_the_stubs_again_changes_nothing(schema: Path, tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs, str(schema)],
        check=True,
        capture_output=True,
    )
    generated = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    assert len(generated) == 3
    for file in generated:
        assert file.read_bytes() == (PROTO / file.relative_to(tmp_path)).read_bytes(), "run `make proto`"
