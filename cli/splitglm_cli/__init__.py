"""The ``splitglm`` command: one file per verb."""
