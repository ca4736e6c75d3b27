"""`ends`: what opens links of every backend, its ends in this process or in two Ray actors (see link_ends.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import link_ends
import pytest
from link_ends import End, Ends, Proxy


def in_threads(pool: ThreadPoolExecutor) -> Proxy:
    end = End()
    return Proxy(lambda method, *args: pool.submit(getattr(end, method), *args).result)


def in_actor() -> Proxy:
    import ray

    ray.cloudpickle.register_pickle_by_value(link_ends)  # the workers do not have the tests on their path
    actor = ray.remote(num_cpus=0, max_concurrency=12)(End).remote()

    def start(method: str, *args: Any) -> Callable[[], Any]:
        ref = getattr(actor, method).remote(*args)
        return lambda: ray.get(ref, timeout=60)

    return Proxy(start)


@pytest.fixture(scope="session")
def actor_pair(ray_cluster: None) -> tuple[Proxy, Proxy]:
    return in_actor(), in_actor()


@pytest.fixture
def mortal_ends(actor_pair: tuple[Proxy, Proxy]) -> Callable[[str], Ends]:
    """Links of a backend whose end `b` a test may kill."""
    return lambda backend: Ends(backend, "", actor_pair[0], in_actor())


@pytest.fixture(
    params=[
        "local",
        "stream-unix",
        "stream-tcp",
        pytest.param("stream-actors", marks=pytest.mark.ray),
        pytest.param("object_store", marks=pytest.mark.ray),
        pytest.param("call", marks=pytest.mark.ray),
    ]
)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    backend = request.param
    address = "tcp:127.0.0.1:0" if backend == "stream-tcp" else ""
    name = backend.partition("-")[0]
    if backend in ("stream-actors", "object_store", "call"):
        yield Ends(name, address, *request.getfixturevalue("actor_pair"))
    else:
        with ThreadPoolExecutor(16) as pool:
            yield Ends(name, address, in_threads(pool), in_threads(pool))
