"""One server, and one Ray cluster, for all tests of this folder that ask for them, one after the other.

`make acceptance`, or CASCADE_ACCEPTANCE=1 set by hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from acceptance.ray_head import RayHead, ray_head
from acceptance.served import KNOWN_URL, Served, known_or_served
from acceptance.turns import Turns, in_turns

CPUS = 12  # two pipelines of light_heavy by Ray's book
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def turns() -> Iterator[Turns]:
    """Who starts a server of its own calls `turns.end()` first."""
    turns = Turns()
    yield turns
    turns.end()


@pytest.fixture(scope="module")
def light_heavy(turns: Turns) -> Served:
    if not os.environ.get("CASCADE_ACCEPTANCE") and not KNOWN_URL:
        pytest.skip("heavy: make acceptance")
    return turns.take(known_or_served)


@pytest.fixture(scope="module")
def head(turns: Turns) -> RayHead:
    if not os.environ.get("CASCADE_ACCEPTANCE"):
        pytest.skip("heavy: make acceptance")
    return turns.take(_head)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = in_turns(items, lambda item: HERE in item.path.parents)


def _head() -> AbstractContextManager[RayHead]:
    return ray_head(CPUS)
