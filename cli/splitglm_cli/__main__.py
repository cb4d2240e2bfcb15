"""``python -m splitglm_cli`` is the ``splitglm`` command of this very interpreter."""

from __future__ import annotations

import sys

from splitglm_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
