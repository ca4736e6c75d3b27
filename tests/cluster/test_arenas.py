"""How many arenas malloc has, in processes that are ours and in those of a user."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from cluster.arenas import few_arenas_of_children

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
COUNT = """
import ctypes, threading
{before}
libc = ctypes.CDLL(None)
met = threading.Barrier(12)
def work():
    piece = ctypes.create_string_buffer(1000)
    libc.malloc(ctypes.c_size_t(1000))
    met.wait(30)
threads = [threading.Thread(target=work) for _ in range(12)]
[t.start() for t in threads]; [t.join() for t in threads]
libc.fdopen.restype = ctypes.c_void_p
out = libc.fdopen(1, b"w")
libc.malloc_info(0, ctypes.c_void_p(out)); libc.fflush(ctypes.c_void_p(out))
"""


def arenas(before: str = "", **environment: str) -> int:
    """Of a process in which twelve threads have asked for memory at once."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC")}
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**clean, **environment},
    )
    return done.stdout.count("<heap nr=")


def test_a_process_of_ours_has_two_and_as_many_as_somebody_has_asked_for() -> None:
    ours = "from cluster.arenas import keep_few_arenas; keep_few_arenas()"
    assert arenas() > 2
    assert arenas(ours) == 2
    assert arenas(ours, MALLOC_ARENA_MAX="3") == 3


def test_what_is_started_meanwhile_has_two_and_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    with few_arenas_of_children():
        assert os.environ["MALLOC_ARENA_MAX"] == "2"
    assert "MALLOC_ARENA_MAX" not in os.environ
    with pytest.raises(KeyError), few_arenas_of_children():
        raise KeyError
    assert "MALLOC_ARENA_MAX" not in os.environ
    monkeypatch.setenv("MALLOC_ARENA_MAX", "5")
    with few_arenas_of_children():
        assert os.environ["MALLOC_ARENA_MAX"] == "5"
    assert os.environ["MALLOC_ARENA_MAX"] == "5"
