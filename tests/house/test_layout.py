"""The shape of the house: rooms, their tests, their packaging, and nothing of one machine in the tree."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/splitglm_*/__init__.py"))
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Home folders, temporary folders and mount points that exist on somebody's machine only.
MACHINE_PATH = re.compile(r"(?<![\w.$}/~-])/(?:home|root|Users|work|tmp|mnt|scratch)/[\w.-]+")
# Programs name these on purpose: a container's own layout, and tests of paths.
PATHS_BY_DESIGN = ("deploy/", "tests/")


def tracked_text_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout, so there is no list of the tree's files")
    files = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    return [file for file in files if file.is_file() and b"\0" not in file.read_bytes()[:4096]]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_every_package_is_typed_packaged_linted_and_tested(package: Path) -> None:
    relative = package.relative_to(ROOT).as_posix()
    assert (package / "py.typed").exists()
    assert relative in CONFIG["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert relative.partition("/")[0] in CONFIG["tool"]["hatch"]["build"]["dev-mode-dirs"]
    assert package.name in CONFIG["tool"]["importlinter"]["root_packages"]
    assert package.name in CONFIG["tool"]["mypy"]["packages"]
    assert package.name in CONFIG["tool"]["ruff"]["lint"]["isort"]["known-first-party"]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_every_package_has_a_tests_folder_of_its_name(package: Path) -> None:
    folder = ROOT / "tests" / package.name.removeprefix("splitglm_")
    assert list(folder.glob("test_*.py")), f"{folder.relative_to(ROOT)} holds no test"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_importing_a_package_runs_next_to_nothing(package: Path) -> None:
    """A package's ``__init__`` is a docstring and a few names, or every import of the room pays for it."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    allowed = (ast.Expr, ast.ImportFrom, ast.Assign)
    assert [ast.unparse(node) for node in tree.body if not isinstance(node, allowed)] == []
    assert len(tree.body) <= 8
    assert package.name != "splitglm_glm" or not any(isinstance(node, ast.ImportFrom) for node in tree.body)


def test_no_top_level_folder_is_importable_under_a_generic_name() -> None:
    """``import edge`` in a user's project must never find ours (and theirs must never hide ours)."""
    assert [path.parent.name for path in ROOT.glob("*/__init__.py")] == []


def test_no_path_of_one_machine_is_in_the_tree() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {hit.group()}"
        for file in tracked_text_files()
        if not file.relative_to(ROOT).as_posix().startswith(PATHS_BY_DESIGN)
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if (hit := MACHINE_PATH.search(line))
    ]
    assert found == []


@pytest.mark.parametrize("text", ["cd /home/ann/splitglm", 'open("/tmp/x.json")', "(/root/.cache)"])
def test_the_path_rule_bites(text: str) -> None:
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["core/work/x", "https://host/home/page", "$HOME/tmp/x", "a /tmp folder"])
def test_the_path_rule_lets_ordinary_text_through(text: str) -> None:
    assert not MACHINE_PATH.search(text)


def test_no_weights_and_no_large_file_are_in_the_tree() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout, so there is no list of the tree's files")
    files = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    assert [str(f.relative_to(ROOT)) for f in files if f.suffix in {".onnx", ".safetensors", ".gguf", ".pt"}] == []
    assert [str(f.relative_to(ROOT)) for f in files if f.is_file() and f.stat().st_size > 1_000_000] == []


def test_the_licence_is_the_one_that_the_package_states() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert CONFIG["project"]["license"] == "Apache-2.0"
    assert CONFIG["project"]["license-files"] == ["LICENSE"]
