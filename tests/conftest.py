"""Fixtures of the whole suite: one Ray cluster for all tests that need one, and the recordings beside the checkout."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
settings.register_profile("suite", deadline=None)  # what is slow on a busy machine is not wrong
settings.load_profile("suite")
os.environ["TRITON_INTERPRET"] = "1"  # GPU kernels run on the CPU in tests; read when Triton is imported


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster, started once (about ten seconds) and stopped at the end. Mark its tests `ray`.

    What passes between actors lies in its object store from 1000 bytes on, as the features of real models do; by
    default the features of toys would travel inside the calls (below 100 KB), and no test could see one left behind.
    """
    import ray

    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=False,
        logging_level="ERROR",
        namespace=f"tests-{uuid.uuid4().hex}",
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
        _system_config={"max_direct_call_object_size": 1000, "worker_niceness": 0},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """`../shared/data` beside the checkout: recordings that are not part of the project. Skips where absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no recordings at {folder}")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the Ray cluster goes first: it takes longest."""
    items.sort(key=lambda item: not _on_ray(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Two processes share the suite file by file, so that a module's fixtures are made once; all that needs the Ray
    cluster is as one file, so that one cluster is started.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ray" if _on_ray(nodeid) else nodeid.partition("::")[0]

    return ByFile(config, log)


def _on_ray(nodeid: str) -> bool:
    return _names_the_cluster(ROOT / nodeid.partition("::")[0])


@cache
def _names_the_cluster(path: Path) -> bool:
    text = path.read_text()
    return "ray_cluster" in text or "mark.ray" in text
