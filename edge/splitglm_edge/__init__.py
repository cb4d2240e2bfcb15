"""The device half: ``from splitglm_edge import Agent``."""

from splitglm_edge.agent import Agent
from splitglm_edge.connection import CloudAddress
from splitglm_edge.generation import Generation
from splitglm_edge.stats import Stats
from splitglm_edge.timeouts import Timeouts

__all__ = ["Agent", "CloudAddress", "Generation", "Stats", "Timeouts"]
