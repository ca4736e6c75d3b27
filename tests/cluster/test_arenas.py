"""How many arenas malloc has, and whether threads keep what is freed, in processes that are ours and in a user's."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from cluster.arenas import NO_CACHES, TUNABLES, VARIABLE, lean_malloc_of_children

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


FREED = """
import ctypes
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c d e f uordblks fordblks keepcost".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
pieces = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(1001))) for _ in range(14)]
before = libc.mallinfo2().uordblks
for piece in pieces[::2]:
    libc.free(piece)
print(before - libc.mallinfo2().uordblks)
"""


def given_back(**environment: str) -> int:
    """Bytes that malloc says are free again of the 7,000 that a process has freed."""
    clean = {name: value for name, value in os.environ.items() if name != TUNABLES}
    command = [sys.executable, "-c", FREED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env={**clean, **environment})
    return int(done.stdout)


def test_without_caches_of_threads_what_is_freed_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TUNABLES, raising=False)
    assert given_back() < 3000
    with lean_malloc_of_children():
        assert given_back(**{TUNABLES: os.environ[TUNABLES]}) >= 7000


@pytest.mark.parametrize(("variable", "lean"), [(VARIABLE, "2"), (TUNABLES, NO_CACHES)])
def test_what_is_started_meanwhile_is_lean_and_the_environment_stays(
    variable: str, lean: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    with lean_malloc_of_children():
        assert os.environ[variable] == lean
    assert variable not in os.environ
    with pytest.raises(KeyError), lean_malloc_of_children():
        raise KeyError
    assert variable not in os.environ
    monkeypatch.setenv(variable, "5")
    with lean_malloc_of_children():
        assert os.environ[variable] == "5"
    assert os.environ[variable] == "5"
