"""The attacks that SECURITY.md names, tried on the real parsers and doors: a typed error, in bounded memory, no hang.

test_recording_attacks.py    recordings and their addresses; hostile_recordings.py makes them
test_text_attacks.py         JSON, and questions that would speak for the template
test_link_attacks.py         what one stage may do to another
test_open_ray.py             a Ray that asks for no token
memory.py                    the bound on memory
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """An attack that takes half a minute has found something that does not end."""

    def too_late(*_: object) -> None:
        raise AssertionError("still busy after 30 s")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
