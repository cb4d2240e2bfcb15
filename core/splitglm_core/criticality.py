"""How much a request matters when not all can be served; travels with the request.

Four classes as in "Handling Overload" (Site Reliability Engineering, Beyer et al. 2016, ch. 21).
"""

from __future__ import annotations

from enum import IntEnum


class Criticality(IntEnum):
    """Lower numbers are served first; higher numbers are refused first."""

    CRITICAL_PLUS = 1  # failing it does visible damage: an operator's or a safety function
    CRITICAL = 2  # a person waits for it: the default
    SHEDDABLE_PLUS = 3  # batch work that can be tried again in minutes
    SHEDDABLE = 4  # may fail for hours
