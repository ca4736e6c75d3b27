"""What the README shows is what happens: its marked blocks run, their printed output is compared, its names exist.

A block after `<!-- run -->` is executed from the root of the repository; if the next block follows `<!-- output -->`,
the two must agree to the letter. Blocks that need minutes carry no mark.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
_BLOCK = re.compile(r"<!-- run -->\n```(\w+)\n(.*?)```(?:\n+<!-- output -->\n```\w*\n(.*?)```)?", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One marked block: its language, its code, and the output that stands below it, if any does."""

    language: str
    code: str
    output: str | None


BLOCKS = [Block(*match.groups()) for match in _BLOCK.finditer(README)]


def test_the_readme_shows_python_and_shell():
    assert {"python", "sh"} <= {block.language for block in BLOCKS}
    assert any(block.language == "python" and block.output for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"{block.language} {i}" for i, block in enumerate(BLOCKS)])
def test_a_marked_block_runs_and_prints_what_stands_below_it(block):
    command = [sys.executable, "-c", block.code] if block.language == "python" else ["sh", "-e", "-c", block.code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    if block.output is not None:
        assert done.stdout == block.output


def test_every_make_target_it_names_exists():
    named = set(re.findall(r"(?:^ {4}|`)make ([a-z]+)", README, re.MULTILINE))
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named <= rules


def test_every_folder_of_its_tree_exists():
    tree = README.rpartition("## The tree")[2].split("```")[1]
    parent, missing = Path(), []
    for line in tree.strip().splitlines():
        names = re.match(r"( *)((?:[\w.]+/? )+)", line + " ")
        assert names, line
        for name in names[2].split():
            if name.endswith("/") or "." in name:
                path = parent / name if names[1] else Path(name)
                missing += [] if (ROOT / path).exists() else [str(path)]
        if not names[1]:
            parent = Path(names[2].split()[0])
    assert not missing


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert not [link for link in links if not (ROOT / link).exists()]
