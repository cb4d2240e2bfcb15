"""What a built wheel must be: small, with nothing but our prefixed packages, each typed, and the licence."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

MAX_BYTES = 1_000_000
PACKAGES = {
    f"splitglm_{room}"
    for room in ("cli", "cloud", "core", "edge", "glm", "partitioner", "security", "sims", "wire")
}  # fmt: skip


def complaints(wheel: Path) -> list[str]:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    packages = {top for top in tops if not top.endswith(".dist-info")}
    found = []
    if (size := wheel.stat().st_size) > MAX_BYTES:
        found.append(f"{size} bytes, more than {MAX_BYTES}")
    if packages != PACKAGES:
        found.append(f"top-level names {sorted(packages ^ PACKAGES)} are missing or too many")
    found += [f"{package} has no py.typed" for package in PACKAGES if f"{package}/py.typed" not in names]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        found.append("no licence file")
    found += [f"stray file {name}" for name in names if name.endswith((".pyc", ".onnx", ".safetensors", ".gguf"))]
    return found


def main() -> int:
    wheel = Path(sys.argv[1])
    found = complaints(wheel)
    for complaint in found:
        print(f"{wheel.name}: {complaint}", file=sys.stderr)
    print(f"{wheel.name}: {wheel.stat().st_size} bytes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
