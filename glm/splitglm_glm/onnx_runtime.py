"""The one import of ONNX Runtime, with its telemetry switched off.

Official builds from 1.31 on report to their vendor from the moment they are loaded, on Linux too (Privacy.md in the
package): a device that was told to send nothing would not keep its word. The variable counts only before the first
import; where an application was faster, the call still suppresses all but the first event.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort  # after the variable, which it reads while it is loaded

ort.disable_telemetry_events()

__all__ = ["ort"]
