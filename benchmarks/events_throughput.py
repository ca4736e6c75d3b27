"""How fast does one core read recordings and draw event frames, beside eventcv on the same file in the same run?

    python benchmarks/events_throughput.py [--data ../shared/data/events] [--seconds 3]

Rivals take turns; the figure is the best turn, since the machine may be shared (wall time) - and CPU time of the best
turn is given beside it. Where the real recordings are absent, simulated EVT2 and EVT3 files of 500,000 events are
written and read instead. Ends in one JSON line. eventcv's "load" decodes into its own columns; "+ numpy" also hands
them over as an array, as ours does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")  # eventcv's threads

import numpy as np

from cascade_runtime.events import Events, read_events, represent

TARGETS = {"evt2": 40.0, "evt3": 20.0, "event_frame": 100.0}


def simulated_files(folder: Path) -> dict[str, Path]:
    """EVT2 and EVT3 files of random single events."""
    rng, count = np.random.default_rng(0), 500_000
    t = np.sort(rng.integers(0, 50_000, count)).astype(np.uint32)
    x, y, p = rng.integers(0, 640, count), rng.integers(0, 480, count), rng.integers(0, 2, count)
    cd = ((p << 28) | ((t & 63).astype(np.int64) << 22) | (x << 11) | y).astype("<u4")
    starts = np.flatnonzero(np.diff(t >> 6, prepend=2**31))
    two = np.insert(cd, starts, ((8 << 28) | (t[starts] >> 6)).astype("<u4"))
    words = np.stack([y, 0x2000 | (p << 11) | x], axis=1).astype("<u2").reshape(-1)
    ticks = np.flatnonzero(np.diff(t, prepend=2**31))
    low = (0x6000 | (t[ticks] & 0xFFF)).astype("<u2")
    high = (0x8000 | (t[ticks] >> 12)).astype("<u2")
    three = np.insert(words, np.repeat(2 * ticks, 2), np.stack([high, low], axis=1).reshape(-1))
    paths = {"evt2": folder / "two.raw", "evt3": folder / "three.raw"}
    paths["evt2"].write_bytes(b"% evt 2.0\n% geometry 640x480\n% end\n" + two.tobytes())
    paths["evt3"].write_bytes(b"% evt 3.0\n% geometry 640x480\n% end\n" + three.tobytes())
    return paths


def best_of_turns(rivals: dict[str, Callable[[], Any]], seconds: float) -> dict[str, tuple[float, float]]:
    """(wall, CPU) seconds of each rival's best turn; one warm-up each, then turn about until the time is up."""
    best = dict.fromkeys(rivals, (float("inf"), float("inf")))
    for run in rivals.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, run in rivals.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = min(best[name][0], wall), min(best[name][1], cpu)
    return best


def rivals_of(path: Path, eventcv: Any) -> tuple[Events, dict[str, dict[str, Callable[[], Any]]]]:
    events = read_events(path)
    read: dict[str, Callable[[], Any]] = {"ours": lambda: read_events(path)}
    frame: dict[str, Callable[[], Any]] = {
        "ours last_wins": lambda: represent(events, "event_frame/last_wins"),
        "ours on_over_off": lambda: represent(events, "event_frame/on_over_off"),
    }
    if eventcv:
        stream = eventcv.load(str(path))
        read |= {"eventcv load": lambda: eventcv.load(str(path))}
        read |= {"eventcv load + numpy": lambda: eventcv.load(str(path)).numpy()}
        frame |= {"eventcv redblue + numpy": lambda: stream.redblue().numpy()}
    return events, {"read": read, "event_frame": frame}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data" / "events"
    )
    arguments.add_argument("--seconds", type=float, default=3.0, help="per comparison")
    options = arguments.parse_args()
    try:
        eventcv: Any = importlib.import_module("eventcv")
    except ImportError:
        eventcv = None
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        real = {
            "evt2": options.data / "prophesee_evt2_spinner.raw",
            "evt3": options.data / "prophesee_evt3_driving.raw",
        }
        files = real if all(path.is_file() for path in real.values()) else simulated_files(Path(folder))
        for kind, path in files.items():
            events, comparisons = rivals_of(path, eventcv)
            for task, rivals in comparisons.items():
                for name, (wall, cpu) in best_of_turns(rivals, options.seconds).items():
                    rates = {
                        "wall_mev_s": round(len(events) / wall / 1e6, 1),
                        "cpu_mev_s": round(len(events) / cpu / 1e6, 1),
                    }
                    sensor = f"{events.width}x{events.height}"
                    rows.append({"file": path.name, "kind": kind, "task": task, "who": name, "sensor": sensor, **rates})
    print(f"{'file':<28}{'sensor':<10}{'task':<13}{'who':<26}{'Mev/s wall':>11}{'Mev/s cpu':>11}")
    for row in rows:
        head = f"{row['file']:<28}{row['sensor']:<10}{row['task']:<13}{row['who']:<26}"
        print(f"{head}{row['wall_mev_s']:>11}{row['cpu_mev_s']:>11}")
    machine = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
    machine |= {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    machine["eventcv"] = getattr(eventcv, "__version__", "present") if eventcv else None
    print(json.dumps({"benchmark": "events_throughput", "targets_mev_s": TARGETS, "machine": machine, "rows": rows}))


if __name__ == "__main__":
    main()
