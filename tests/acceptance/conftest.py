"""One server, and one Ray cluster, for all tests of this folder that ask for them.

`make acceptance`, or CASCADE_ACCEPTANCE=1 set by hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from acceptance.ray_head import RayHead, ray_head
from acceptance.served import KNOWN_URL, Served, known_or_served

CPUS = 12  # two pipelines of light_heavy by Ray's book


@pytest.fixture(scope="session")
def light_heavy() -> Iterator[Served]:
    if not os.environ.get("CASCADE_ACCEPTANCE") and not KNOWN_URL:
        pytest.skip("heavy: make acceptance")
    with known_or_served() as server:
        yield server


@pytest.fixture(scope="session")
def head() -> Iterator[RayHead]:
    if not os.environ.get("CASCADE_ACCEPTANCE"):
        pytest.skip("heavy: make acceptance")
    with ray_head(CPUS) as head:
        yield head
