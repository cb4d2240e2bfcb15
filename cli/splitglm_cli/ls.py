"""``splitglm ls``: the models of the store."""

from __future__ import annotations

import json
import sys

from splitglm_cli.options import Debug, Json


def ls(as_json: Json = False, debug: Debug = False) -> None:
    """List the stored models."""
    from splitglm_cli.model_facts import inspected, stored_facts
    from splitglm_cli.text_table import text_table
    from splitglm_glm.store import ModelStore

    store = ModelStore()
    models = inspected(store)
    if as_json:
        print(json.dumps({"store": str(store.root), "models": [stored_facts(model) for model in models]}))
        return
    if not models:
        print(f"no models in {store.root}; splitglm pull smollm2-135m brings the demo model", file=sys.stderr)
        return
    rows = [
        (
            model.name,
            model.source.kind if model.source else "-",
            f"{model.size_bytes / 1e6:.0f} MB",
            f"{model.graphs_bytes / 1e6:.0f} MB",
            model.fingerprint[:12] or "-",
            f"damaged: {model.problem}" if model.problem else "",
        )
        for model in models
    ]
    print(text_table(("NAME", "SOURCE", "SIZE", "GRAPHS", "FINGERPRINT", ""), rows))
