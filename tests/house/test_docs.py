"""The documents speak of the tree as it is: files exist, links lead somewhere, commands are commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


def commands() -> list[str]:
    """Every ``splitglm VERB …`` line of the shell blocks of README and docs, without its comment."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            found += [line.partition("  #")[0].strip() for line in block.splitlines() if line.startswith("splitglm ")]
    return sorted(set(found))


def test_the_list_of_files_is_the_tree_as_it_is() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "list_rooms.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


def test_files_named_in_the_life_of_a_request_exist() -> None:
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8").partition("## Files")[0]
    named = re.findall(r"`([a-z]+)/([a-z_]+\.py)`", page)
    assert len(named) > 20
    cloud = ROOT / "cloud" / "splitglm_cloud"  # the one room whose files lie in folders
    missing = [
        f"{room}/{file}"
        for room, file in named
        if not list((ROOT / room).glob(f"splitglm_*/{file}")) and not (cloud / room / file).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_repository_paths_in_code_spans_exist(page: Path) -> None:
    spans = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|toml|txt|proto|json))`", page.read_text(encoding="utf-8"))
    full = [span for span in spans if span.count("/") > 1 or span.startswith(("tests/", "docs/", "benchmarks/"))]
    assert [span for span in full if "NAME" not in span and not (ROOT / span).exists()] == []


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_documents_exist_with_their_options(command: str) -> None:
    words = shlex.split(command)[1:]
    verb = words[:2] if words[0] in {"cloud", "keys", "sim"} else words[:1]
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    result = subprocess.run(
        [sys.executable, "-c", "import sys; from splitglm_cli.main import main; sys.exit(main())", *verb, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert result.returncode == 0, result.stderr
    assert {option for option in options if option not in result.stdout} == set()


def test_the_documents_name_commands_at_all() -> None:
    assert len(commands()) >= 5
