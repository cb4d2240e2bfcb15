"""The link classes that ship with the package, by name: parameters only, so that no trace file is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from splitglm_core.errors import InputError
from splitglm_sims.links.markov import MarkovLink, generate
from splitglm_sims.links.summary import LinkSummary
from splitglm_sims.presets.shelf import Shelf
from splitglm_sims.world.scene import LinkScene


class Use(Enum):
    """What a class may be used for: settings are never chosen on what results are reported on."""

    TUNE = "tune"
    REPORT = "report"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkClass:
    """A kind of link. Exactly one of ``link`` and ``summary`` says how it behaves.

    Attributes:
        about: one line for people.
        source: where the figures come from, and what is assumed.
        use: for tuning or for reporting.
        uplink: how the uplink was had where nobody recorded it; empty where it was.
        link: fitted parameters.
        summary: published percentiles.
    """

    about: str
    source: str
    use: Use
    uplink: str = ""
    link: MarkovLink | None = None
    summary: LinkSummary | None = None
    model: MarkovLink = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.about or not self.source:
            raise InputError("a link class says what it is about and where its figures come from")
        if (self.link is None) == (self.summary is None):
            raise InputError("a link class has either a table link or a table summary")
        object.__setattr__(self, "model", self.link or (self.summary and self.summary.link()))

    def scene(self, seed: int, seconds: float) -> LinkScene:
        """A link of this class whose traces last ``seconds`` and then repeat; equal seeds give equal scenes."""
        return generate(self.model, seed=seed, seconds=seconds)


LINK_CLASSES: Final = Shelf(kind=LinkClass, package="splitglm_sims.links", folder="classes", word="link class")


def link_class(name: str) -> LinkClass:
    """A shipped class by name, or one of the user's own from a TOML file.

    Raises:
        InputError: there is none, or the file is malformed; the message names file and key.
    """
    return LINK_CLASSES.load(name)


def class_names(use: Use | None = None) -> tuple[str, ...]:
    """Of the shipped classes, sorted; all of them, or those for one use."""
    return tuple(name for name in LINK_CLASSES.names() if use is None or link_class(name).use is use)
