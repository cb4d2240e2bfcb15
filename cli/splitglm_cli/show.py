"""``splitglm show``: one model in detail."""

from __future__ import annotations

import json
from typing import Any

from splitglm_cli.options import Debug, Json, Model
from splitglm_core.errors import ModelNotFound


def show(model: Model, as_json: Json = False, debug: Debug = False) -> None:
    """Show a model's origin, fingerprint, shape and built graphs."""
    from splitglm_cli.model_facts import checkpoint_facts, stored_facts
    from splitglm_cli.text_table import text_facts
    from splitglm_glm.opening import open_checkpoint
    from splitglm_glm.store import ModelStore, name_of

    store = ModelStore()
    facts: dict[str, Any] = {"name": model}
    stored = None
    if name_of(model) is not None:
        try:
            stored = store.show(model)
            facts |= stored_facts(stored)
        except ModelNotFound:
            pass  # then it may be a directory
    if stored is None or not stored.problem:
        facts |= checkpoint_facts(open_checkpoint(model, store), store)
    if stored is not None and stored.source is not None and stored.source.inexpressible_bytes:
        facts["inexpressible_bytes"] = [f"0x{byte:02x}" for byte in stored.source.inexpressible_bytes]
    print(json.dumps(facts) if as_json else text_facts([(name, _words(value)) for name, value in facts.items()]))


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_words(item)}" for name, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)
