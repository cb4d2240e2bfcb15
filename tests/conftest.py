"""Shared fixtures; makes the test factories in this folder importable by name under importlib import mode."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """The demo model, from the default store (or ``SPLITGLM_HOME``); pulled into it once if it is not there yet."""
    from splitglm_core.errors import LinkError, ModelNotFound
    from splitglm_glm.pull import pull
    from splitglm_glm.smollm2 import NAME
    from splitglm_glm.store import ModelStore

    store = ModelStore()
    try:
        return store.find(NAME)
    except ModelNotFound:
        pass
    try:
        return pull(NAME, store)
    except LinkError as error:
        pytest.skip(f"the demo model is not in the store and cannot be pulled: {error.one_line()}")
