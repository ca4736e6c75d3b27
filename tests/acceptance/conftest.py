"""One server for all tests of this folder that ask for it: `make acceptance`, or CASCADE_ACCEPTANCE=1 set by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from acceptance.served import KNOWN_URL, Served, known_or_served


@pytest.fixture(scope="session")
def light_heavy() -> Iterator[Served]:
    if not os.environ.get("CASCADE_ACCEPTANCE") and not KNOWN_URL:
        pytest.skip("heavy: make acceptance")
    with known_or_served() as server:
        yield server
