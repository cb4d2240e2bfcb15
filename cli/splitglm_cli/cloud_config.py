"""``splitglm cloud config``: every setting of a server, its value, and where that came from."""

from __future__ import annotations

import json

from splitglm_cli.options import Debug, Json
from splitglm_cli.setting_flags import Config, SettingFlags, resolved, with_setting_flags
from splitglm_cloud.settings import CloudSettings


@with_setting_flags
def config(flags: SettingFlags, config: Config = None, as_json: Json = False, debug: Debug = False) -> None:
    """Show the settings that `cloud serve` would have with the same flags, environment and file. Starts nothing."""
    from splitglm_cli.text_table import text_table

    found = resolved(flags, config)
    checked = CloudSettings(**{"model": "none", **found.values})  # says what does not go together
    if checked.tenants_file is not None:
        from splitglm_cloud.gateway.tenants import Tenants

        Tenants.load(checked.tenants_file)
    lines = [(known, known.shown(value), origin) for known, value, origin in found.lines()]
    if as_json:
        settings = [
            {"key": known.key, "value": None if text == "-" else text, "origin": origin.kind, "where": origin.where}
            for known, text, origin in lines
        ]
        print(json.dumps({"settings": settings}))
        return
    print(text_table(("SETTING", "VALUE", "FROM"), [(known.key, text, str(origin)) for known, text, origin in lines]))
