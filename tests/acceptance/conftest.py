"""One server for all tests of this folder that ask for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from acceptance.served import Served, served


@pytest.fixture(scope="session")
def light_heavy() -> Iterator[Served]:
    with served() as server:
        yield server
