"""Mutated recordings of every format: typed errors only, memory within bounds, whatever the bytes."""

from __future__ import annotations

import importlib.util
import resource
from pathlib import Path

import numpy as np
import pytest
import recording_seeds as seeds

from cascade_runtime.errors import InputError
from cascade_runtime.events import Events, ReadLimits, read_events, write_events

MUTATIONS = 500
LIMITS = ReadLimits(max_file_bytes=2**20, max_expanded_bytes=8 * 2**20, max_events=100_000)
MAX_GROWTH_BYTES = 256 * 2**20
_NUMBERS = [bytes([byte]) * size for byte in (0x00, 0x7F, 0x80, 0xFF) for size in (1, 2, 4, 8)]


def _written(suffix: str):
    def make(events: Events, folder: Path) -> bytes:
        write_events(folder / f"seed{suffix}", events)
        return (folder / f"seed{suffix}").read_bytes()

    return make


def _plain(seed):
    return lambda events, folder: seed(events)


FORMATS = {
    "eventgpt.npy": _plain(seeds.eventgpt_npy),
    "bench.npz": _plain(seeds.eventbench_npz),
    "own.npz": _written(".npz"),
    "own.arrow": _written(".arrow"),
    "stream.arrows": _plain(lambda events: events.to_ipc_bytes()),
    "own.parquet": _written(".parquet"),
    "own.csv": _written(".csv"),
    "rpg.txt": _plain(seeds.rpg_text),
    "caltech.bin": _plain(seeds.forty_bit),
    "two.raw": _plain(seeds.evt2),
    "three.raw": _plain(seeds.evt3),
    "dv.aedat4": _plain(seeds.aedat4),
    "packets.bag": _plain(seeds.packet_bag),
    "array.bag": _plain(seeds.array_bag),
    "events.h5": seeds.hdf5,
    "cd.dat": _plain(seeds.dat),
    "davis.aedat": _plain(seeds.aedat2),
}
EXTRAS = {"events.h5": ("h5py", "hdf5plugin"), "cd.dat": ("eventcv",), "davis.aedat": ("eventcv",)}


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four of: a flipped bit, a number at an extreme, a cut, a piece repeated or removed, noise."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        # half of all damage goes to the first 256 bytes, where the sizes are
        at = int(rng.integers(0, max(1, min(len(out), 256) if rng.random() < 0.5 else len(out))))
        match int(rng.integers(0, 6)):
            case 0:
                out[at : at + 1] = bytes([(out[at] if at < len(out) else 0) ^ (1 << int(rng.integers(0, 8)))])
            case 1:
                number = _NUMBERS[int(rng.integers(0, len(_NUMBERS)))]
                out[at : at + len(number)] = number
            case 2:
                del out[at:]
            case 3:
                out[at:at] = out[at : at + int(rng.integers(1, 64))]
            case 4:
                del out[at : at + int(rng.integers(1, 64))]
            case 5:
                out[at : at + 4] = rng.bytes(4)
        if not out:
            break
    return bytes(out)


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_give_events_or_a_typed_error(name: str, tmp_path: Path) -> None:
    for module in EXTRAS.get(name, ()):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    data = FORMATS[name](seeds.simulated(120), tmp_path)
    rng = np.random.default_rng(sum(name.encode()))
    path = tmp_path / name
    path.write_bytes(data)
    assert len(read_events(path, limits=LIMITS)) == 120
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for number in range(MUTATIONS):
        bad = mutated(data, rng)
        path.write_bytes(bad)
        try:
            assert len(read_events(path, limits=LIMITS)) <= LIMITS.max_events
        except InputError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"mutation {number} of {name}: {type(error).__name__}: {error}") from error
    assert refused >= 10  # the damage reached the reader
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MAX_GROWTH_BYTES
