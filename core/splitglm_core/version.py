"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("splitglm")
except PackageNotFoundError:  # a source tree used without installing it
    VERSION = "0+unknown"
