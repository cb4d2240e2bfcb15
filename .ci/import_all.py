"""Imports every installed splitglm module that the named half can have, and checks what that loaded.

``device``: only the [edge] extra is installed. Importing the edge package must load neither torch, transformers nor
the protobuf compiler; every module of the rooms below it must import. ``everything``: the [cloud] and [sims] extras
too; every module but those that need torch.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time

NEVER_ON_THE_DEVICE = ("torch", "transformers", "grpc_tools", "ray", "simpy")
DEVICE_ROOMS = ("core", "wire", "security", "partitioner", "glm", "edge", "cli")
ALL_ROOMS = (*DEVICE_ROOMS, "cloud", "sims")
NEED_TORCH = {
    "splitglm_glm.model",
    "splitglm_glm.linear",
    "splitglm_cloud.engine.runner_torch",
    "splitglm_cloud.engine.paged_kv",
    "splitglm_cloud.engine.paged_attention",
}


def modules(room: str) -> list[str]:
    package = importlib.import_module(f"splitglm_{room}")
    below = pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=reraise)
    return [package.__name__, *(module.name for module in below)]


def reraise(name: str) -> None:
    raise ImportError(f"cannot import {name}") from sys.exception()


def main() -> int:
    half = sys.argv[1]
    start = time.perf_counter()
    importlib.import_module("splitglm_edge")
    took_s = time.perf_counter() - start
    print(f"import splitglm_edge: {took_s:.2f} s, {len(sys.modules)} modules")
    imported = 0
    for room in DEVICE_ROOMS if half == "device" else ALL_ROOMS:
        for name in modules(room):
            if name not in NEED_TORCH and not name.endswith(".__main__"):
                importlib.import_module(name)
                imported += 1
        if room == "edge" and half == "device":
            loaded = [name for name in NEVER_ON_THE_DEVICE if name in sys.modules]
            if loaded:
                print(f"the device's rooms load {', '.join(loaded)}", file=sys.stderr)
                return 1
    print(f"{imported} modules imported with {half!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
