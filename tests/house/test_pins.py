"""constraints.txt pins what pyproject.toml asks for, and the environment under test is the pinned one."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(number) for name, number in pairs}


def asked_for() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    texts = [*project["dependencies"], *extras, *PROJECT["build-system"]["requires"]]
    return [requirement for text in texts if (requirement := Requirement(text)).name != "splitglm"]


def test_a_line_of_the_file_is_a_comment_or_one_exact_public_version() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*")
    assert [line for line in lines if not (line.startswith("#") or exact.fullmatch(line))] == []


@pytest.mark.parametrize("requirement", asked_for(), ids=str)
def test_what_the_project_asks_for_is_pinned_within_its_range(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    assert name in pins(), "add the pin with `make constraints`"
    assert requirement.specifier.contains(pins()[name])


def test_torch_is_asked_for_by_one_exact_version() -> None:
    """A range could pull gigabytes of another build than the tested one."""
    (torch,) = (requirement for requirement in asked_for() if requirement.name == "torch")
    assert [clause.operator for clause in torch.specifier] == ["=="]


def test_the_installed_versions_are_the_pinned_ones() -> None:
    wrong = []
    for name, pinned in pins().items():
        try:
            installed = Version(version(name))
        except PackageNotFoundError:
            continue  # another platform's dependency
        if installed.public != pinned.public:
            wrong.append(f"{name} {installed} instead of {pinned}")
    assert wrong == []
