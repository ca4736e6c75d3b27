"""What does a bad link between an edge box and the core cost, and does it ever change an answer?

    python -m benchmarks.edge [--seconds 4] [--max-tokens 8] [--only NAME] [--cuts raw frames features drafts]
    python -m benchmarks.edge --sizes FILE ...        bytes per window of recordings, for planning/edge_windows.toml

`cascade edge-server` and `cascade edge` run in a network namespace each, with a link between them that delays, loses,
narrows and breaks packets (`slow_link.py`). A recording of simulated scenes is replayed in real time, 20 windows of
50 ms a second, newest kept; during the 10 s cut nothing may be left out. Every answered window is compared, token by
token, with this process' answer to the same window. With the cut "drafts" light runs on the edge (recipe
`edge_drafts`), and "accepted" counts the answer tokens that it had drafted, per window; the other cuts are of
`light_heavy`. Latency is from the moment when the sensor closed a window to the
moment when the edge has its answer; "core ms" is when the core had the window whole (median). Needs root, namespaces
and /dev/net/tun; elsewhere it says so. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.slow_link import CORE, SlowLink
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.client.recording import to_events
from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.edge.cut import Seeing
from cascade_runtime.edge.ingest import windows_of
from cascade_runtime.edge.packing import FramePacker, RawPacker
from cascade_runtime.events import Events, write_events
from cascade_runtime.in_process import InProcess
from cascade_runtime.training.scenes import simulate_scene

QUESTION = "What are the key elements in this scene?"
RECIPE = "light_heavy"
CUTS = {"raw": RECIPE, "frames": RECIPE, "features": RECIPE, "drafts": "edge_drafts"}  # and their recipes
PORTS = {RECIPE: 8100, "edge_drafts": 8101}
WINDOW_US = 50_000
_LINES = 20  # of what a core says, where it does not start
RULES = {"activity": {"frames": 2, "size": 64}, "event_frame/last_wins": {"frames": 5}}


@dataclass(frozen=True)
class Setting:
    """A state of the link; delays are one way. cut_s: how long it is cut, two seconds after the first answers."""

    name: str
    delay_ms: float = 0.0
    loss: float = 0.0
    mbit_s: float | None = None
    cut_s: float = 0.0
    cuts: tuple[str, ...] = tuple(CUTS)


SETTINGS = (
    Setting("no delay"),
    Setting("5 ms", delay_ms=5),
    Setting("50 ms", delay_ms=50),
    Setting("200 ms", delay_ms=200),
    Setting("5 ms, 1 % loss", delay_ms=5, loss=0.01),
    Setting("5 ms, 10 Mbit/s", delay_ms=5, mbit_s=10.0),
    Setting("5 ms, cut 10 s", delay_ms=5, cut_s=10.0, cuts=("raw", "frames")),
)


def recording(seconds: float) -> Events:
    """Simulated scenes one after the other."""
    parts: list[Events] = []
    end_us, seed = 0, 100
    while end_us < 1e6 * seconds:
        scene = simulate_scene(seed=seed).events
        t = scene.t - scene.t[0] + end_us
        parts.append(Events(t, scene.x, scene.y, scene.p, width=scene.width, height=scene.height))
        end_us, seed = int(t[-1]) + 500, seed + 1
    return Events.concat(parts).window(0, int(1e6 * seconds))


def answers_here(events: Events, max_tokens: int) -> dict[int, list[int]]:
    """Window number -> tokens, from the one-process engine."""
    windows = [window for window in windows_of(events, WINDOW_US) if len(window.events)]
    sampling = SamplingParams(max_tokens=max_tokens)
    requests = [GenerateRequest(events=each.events, question=QUESTION, sampling=sampling) for each in windows]
    answers = InProcess(load_recipe(RECIPE)).engine.generate(requests)
    return {
        window.number: list(answer.token_ids)
        for window, answer in zip(windows, answers, strict=True)
        if isinstance(answer, Answer)
    }


@contextlib.contextmanager
def core(link: SlowLink, token: Path, recipe: str) -> Iterator[None]:
    """The core of a recipe in its namespace."""
    command = [sys.executable, "-m", "cluster.cli", "edge-server", recipe, "--host", CORE, "--plaintext"]
    command += ["--port", str(PORTS[recipe])]
    process = subprocess.Popen(
        link.inside(0, *command, "--token-file", str(token)), stderr=subprocess.PIPE, text=True, env=_environment()
    )
    assert process.stderr is not None
    try:
        said = deque[str](maxlen=_LINES)
        for line in process.stderr:
            said.append(line)
            if "Ctrl-C" in line:
                break
        else:
            raise RuntimeError(f"the core did not start:\n{''.join(said)}")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def run_edge(link: SlowLink, setting: Setting, cut: str, file: Path, token: Path, max_tokens: int) -> list[Any]:
    """The lines of one replay, the last of them its counts."""
    link.set(delay_ms=setting.delay_ms, loss=setting.loss, mbit_s=setting.mbit_s)
    keep = ["--keep", "all", "--waiting", "1024"] if setting.cut_s else ["--keep", "newest"]
    command = [sys.executable, "-m", "cluster.cli", "edge", str(file), "-q", QUESTION]
    command += ["--server", f"{CORE}:{PORTS[CUTS[cut]]}"]
    command += [
        "--cut",
        cut,
        "--plaintext",
        "--token-file",
        str(token),
        "--max-tokens",
        str(max_tokens),
        "--json",
        *keep,
    ]
    if cut in ("features", "drafts"):
        command += ["--recipe", CUTS[cut]]
    lines: list[Any] = []
    process = subprocess.Popen(link.inside(1, *command), stdout=subprocess.PIPE, text=True, env=_environment())
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(json.loads(line))
            if setting.cut_s and len(lines) == 1:
                threading.Thread(target=_cut, args=(link, setting.cut_s), daemon=True).start()
        if process.wait(120):
            raise RuntimeError(f"{setting.name}, {cut}: the edge failed")
    finally:
        process.kill()
    return lines


def _cut(link: SlowLink, seconds: float) -> None:
    time.sleep(1.0)
    link.cut = True
    time.sleep(seconds)
    link.cut = False


def measured(setting: Setting, cut: str, lines: list[Any], here: dict[int, list[int]]) -> dict[str, Any]:
    """One row; per second until the last answer."""
    *replies, counts = lines
    answered = [reply for reply in replies if reply["is"] == "answered"]
    latency_ms = sorted(reply["latency_ms"]["arrived"] for reply in answered)
    same = sum(reply["token_ids"] == here[reply["window"]] for reply in answered)
    dropped = counts["dropped"] + sum(reply["is"] == "dropped" for reply in replies)
    took_s = max(reply["end_us"] / 1e6 + reply["latency_ms"]["arrived"] / 1000 for reply in answered)
    return {
        "link": setting.name,
        "cut": cut,
        "windows": counts["windows"] - counts["empty"],
        "answered": len(answered),
        "windows_per_s": round(len(answered) / took_s, 2),
        "kb_per_window": round(statistics.fmean(reply["payload_bytes"] for reply in answered) / 1000, 1),
        "core_p50_ms": round(statistics.median(reply["latency_ms"]["received"] for reply in answered), 1),
        "latency_p50_ms": round(float(np.percentile(latency_ms, 50)), 1),
        "latency_p95_ms": round(float(np.percentile(latency_ms, 95)), 1),
        "accepted": round(statistics.fmean(reply["accepted"] for reply in answered), 2),
        "tokens": round(statistics.fmean(len(reply["token_ids"]) for reply in answered), 2),
        "dropped": dropped,
        "lost": counts["windows"] - counts["empty"] - len(answered) - dropped,
        "doubled": len(answered) - len({reply["window"] for reply in answered}),
        "links": counts["links"],
        "identical": same,
    }


def sizes(files: list[str]) -> None:
    """Median bytes of a window by cut, and the least CPU time of packing one, as TOML."""
    for file in files:
        events = to_events(file)
        windows = [window for window in windows_of(events, WINDOW_US) if len(window.events)]
        windows = windows[:-1] or windows  # the last one is seldom whole
        packers = {"raw": RawPacker()} | {
            rule: FramePacker(Seeing(recipe="", cuts=("frames",), rule=rule, options=options))
            for rule, options in RULES.items()
        }
        bytes_: dict[str, int] = {}
        ms: dict[str, float] = {}
        for name, packer in packers.items():
            found, times = [], []
            for window in windows[:8]:
                start = time.process_time()
                found.append(len(packer.pack(window).payload))
                times.append(1000 * (time.process_time() - start))
            bytes_[name], ms[name] = int(statistics.median(found)), round(min(times), 2)
        print(f'[[scenes]]\nname = "{Path(file).stem}, {events.width}x{events.height}"')
        print(f"events = {int(statistics.median(len(window.events) for window in windows))}")
        print(f"raw_bytes = {bytes_.pop('raw')}")
        print("frame_bytes = {" + ", ".join(f'"{rule}" = {count}' for rule, count in bytes_.items()) + "}")
        print("frame_ms = {" + ", ".join(f'"{rule}" = {ms[rule]}' for rule in bytes_) + "}\n", flush=True)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of the recording")
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--only", help="settings whose name contains this")
    parser.add_argument("--cuts", nargs="+", choices=CUTS, default=list(CUTS), metavar="CUT", help="only these")
    parser.add_argument("--sizes", nargs="+", metavar="FILE")
    args = parser.parse_args()
    if args.sizes:
        sizes(args.sizes)
        return
    settings = [each for each in SETTINGS if not args.only or args.only in each.name]
    if not settings:
        parser.error(f"--only {args.only}: {'; '.join(each.name for each in SETTINGS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the namespaces and the core are removed
    events = recording(args.seconds)
    busy = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}; load at the start {busy:.1f}")
    print(f"{RECIPE}, {args.max_tokens} tokens a window, {events!r}, windows of {WINDOW_US // 1000} ms in real time\n")
    rows: list[dict[str, Any]] = []
    link = SlowLink()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        try:
            stack.enter_context(link.up())
        except (OSError, subprocess.SubprocessError) as error:
            print(f"no namespaces or no TUN device here, nothing measured: {error}")
            print(json.dumps({"benchmark": "edge", "skipped": str(error)}))
            return
        file, token = Path(folder) / "scenes.npz", Path(folder) / "token"
        write_events(file, events)
        token.write_text("a-token-for-this-measurement\n")
        here = answers_here(events, args.max_tokens)
        for recipe in dict.fromkeys(CUTS[cut] for cut in args.cuts):
            stack.enter_context(core(link, token, recipe))
        print(
            f"{'link':<18}{'cut':<10}{'answered':>9}{'/s':>7}{'kB':>8}{'core ms':>9}{'p50 ms':>9}{'p95 ms':>9}", end=""
        )
        print(f"{'accepted':>10}{'dropped':>9}{'links':>7}  same")
        for setting in settings:
            for cut in (cut for cut in setting.cuts if cut in args.cuts):
                row = measured(setting, cut, run_edge(link, setting, cut, file, token, args.max_tokens), here)
                rows.append(row)
                print(
                    f"{row['link']:<18}{row['cut']:<10}{row['answered']:>9}{row['windows_per_s']:>7.1f}"
                    f"{row['kb_per_window']:>8.1f}{row['core_p50_ms']:>9.0f}{row['latency_p50_ms']:>9.0f}{row['latency_p95_ms']:>9.0f}"
                    f"{row['accepted']:>10.1f}{row['dropped']:>9}{row['links']:>7}"
                    f"  {row['identical']}/{row['answered']}",
                    flush=True,
                )
    summary = {name: sum(row[name] for row in rows) for name in ("lost", "doubled")}
    summary["changed"] = sum(row["answered"] - row["identical"] for row in rows)
    told = ", ".join(f"{name} {count}" for name, count in summary.items())
    print(f"\n{told}; load at the end {os.getloadavg()[0]:.1f}")
    print(json.dumps({"benchmark": "edge", **summary, "load": round(busy, 1), "rows": rows}))
    sys.exit(1 if any(summary.values()) else 0)


if __name__ == "__main__":
    main()
