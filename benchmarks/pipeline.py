"""What does running all stages at once bring, and what does it cost?

    python -m benchmarks.pipeline [--quick] [--only NAME ...] [--rounds N]

Pipelines of Ray actors that differ in one thing, turn about in one run, medians of rounds:

    lockstep    real models, 16 streams: the adaptive pipeline beside the same actors in lock step (one stage at a time,
                the recipe's blocks, 16 questions after the other 16), tokens per second from the first request to the
                last answer; and beside lock step that new rows may join at any round
    one_stream  real models, 1 stream: the adaptive pipeline beside lock step at several block lengths, the best counts
    emulated    devices of 5, 25 and 100 ms a pass (benchmarks/recipes/emulated_5_25_100.toml), 16 streams: how much of
                the time the bottleneck is in a pass, latency hidden, coordination
    measured    the same devices at 1, 4 and 16 streams, and the simulator beside them
    useless     drafters that are no use: random weights (real models), always wrong, ten times slower than the target,
                and dead (emulated), at 1, 4 and 16 streams: the adaptive pipeline beside the same target alone
    clips       with --traces DIR: recorded stage times of two models, clips of 2 to 20 s (emulated): one clip after the
                other with the target alone, then pipelined with the target alone, then with drafts
    idle        what all actors of a pipeline that has nothing to do burn, beyond as many bare Ray actors, from /proc

From the stages' own clocks: latency hidden = 1 - (wall - longest busy) / (sum of busy - longest busy). Coordination is
what the busiest stage's loop spends awake outside passes, over its time in passes. All answers of a part are compared:
the benchmark fails where token ids differ. Emulated parts run no model: timed waits, made-up or recorded tokens, all
else real. One JSON line last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.adapter import AdapterVerifierStage
from actors.controller import Controller
from actors.drafter import Drafter
from actors.encoder import EventEncoderStage
from actors.mid_verifier import MidVerifier
from actors.target import Target
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams, StepProfile, load_recipe
from cascade_runtime.events import Events
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.simulation.measured import MeasuredPolicy, MeasuredRun, MeasuredStage
from cluster.launch import FOREGROUND, Pipeline, launch

QUESTIONS = (
    "What are the key elements in this scene?",
    "What is happening in this recording?",
    "Describe the motion.",
    "Which way is it moving?",
)
FIRST_SCENE = 6_000_000  # far from the seeds of training
BLOCKS = (2, 4, 8, 12, 16)
COUNTERS = ("busy_s", "awake_s", "passes", "tokens_fed")


@dataclass
class Run:
    """One workload through one pipeline; counters per language stage."""

    tokens: int
    wall_s: float
    answers: tuple[tuple[int, ...], ...]
    busy_s: dict[str, float] = field(default_factory=dict)
    awake_s: dict[str, float] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)
    tokens_fed: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall_s

    @property
    def hidden(self) -> float:
        """Share of what could overlap that did."""
        total, longest = sum(self.busy_s.values()), max(self.busy_s.values())
        return 1 - (self.wall_s - longest) / (total - longest) if total > longest else 1.0

    @property
    def coordination(self) -> float:
        """Time the busiest stage's loop is awake outside passes, over its time in passes."""
        name = max(self.busy_s, key=lambda each: self.busy_s[each])
        return (self.awake_s[name] - self.busy_s[name]) / self.busy_s[name]


@contextmanager
def local_ray() -> Generator[None]:
    """A local Ray whose books have room for several pipelines; threads per stage are the recipe's all the same."""
    import ray

    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=64, _system_config=FOREGROUND, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def requests(count: int, max_tokens: int, *, speculate: bool = True) -> list[GenerateRequest]:
    """Questions about simulated scenes, always the same."""
    from cascade_runtime.training.scenes import simulate_scene

    scenes: list[Events] = [simulate_scene(FIRST_SCENE + seed).events for seed in range(min(count, 12))]
    sampling = SamplingParams(max_tokens=max_tokens)
    return [
        GenerateRequest(
            events=scenes[i % len(scenes)],
            question=QUESTIONS[(i + i // len(scenes)) % len(QUESTIONS)],
            sampling=sampling,
            speculate=speculate,
        )
        for i in range(count)
    ]


def drive(pipeline: Pipeline, work: Sequence[GenerateRequest], streams: int, *, batches: bool = False) -> Run:
    """Each of `streams` clients asks its next question as soon as it has an answer; with `batches`, as soon as all
    of them have theirs.
    """
    before = pipeline.stats()

    def ask(request: GenerateRequest) -> Answer:
        fresh = replace(request, request_id=os.urandom(8).hex())
        return pipeline.controller.result(pipeline.controller.start("generate", fresh, None), 600.0)

    start = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        share = streams if batches else len(work)
        answers = [each for i in range(0, len(work), share) for each in pool.map(ask, work[i : i + share])]
    wall_s = time.perf_counter() - start
    after = pipeline.stats()
    levels = pipeline.recipe.cascade.levels
    spent = {key: {name: after[name][key] - before[name][key] for name in levels} for key in COUNTERS}
    tokens = tuple(answer.token_ids for answer in answers)
    return Run(sum(map(len, tokens)), wall_s, tokens, **spent)


def turn_about(contestants: dict[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """One run each to warm up, then `rounds` of each in turn. Raises `SystemExit` where token ids differ."""
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    said = {run().answers for run in contestants.values()}
    for _ in range(rounds):
        for name, run in contestants.items():
            runs[name].append(run())
            said.add(runs[name][-1].answers)
    if len(said) > 1:
        raise SystemExit(f"ANSWERS DIFFER among {', '.join(contestants)}")
    return runs


def ratio(runs: dict[str, list[Run]], one: str, other: str) -> float:
    """The median over rounds of the ratio of throughputs, each pair measured side by side."""
    return statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in zip(runs[one], runs[other], strict=True))


def with_policy(recipe: Recipe, mode: str, **cascade: Any) -> Recipe:
    """The recipe under another policy; `cascade` replaces fields of its [cascade] table."""
    deadlines = recipe.deadlines
    if mode == "lock_step":  # it waits for everybody, however long that takes
        deadlines = replace(deadlines, upstream_s=10.0)
    policy = replace(recipe.policy, mode=mode)
    return replace(recipe, policy=policy, deadlines=deadlines, cascade=replace(recipe.cascade, **cascade))


def show(name: str, runs: Sequence[Run]) -> None:
    """One row."""

    def median(of: Callable[[Run], float]) -> float:
        return statistics.median(of(run) for run in runs)

    busy = "  ".join(
        f"{stage} {median(lambda r, s=stage: r.busy_s[s] / r.wall_s):.2f}"
        f" ({median(lambda r, s=stage: r.passes[s]):.0f} passes, {median(lambda r, s=stage: r.tokens_fed[s]):.0f} fed)"
        for stage in runs[0].busy_s
    )
    print(
        f"  {name:<34}{median(lambda r: r.tokens_per_s):>8.1f} tokens/s   hidden {median(lambda r: r.hidden):>5.2f}"
        f"   coordination {median(lambda r: r.coordination):.3f}   busy {busy}",
        flush=True,
    )


def lockstep(args: argparse.Namespace) -> dict[str, Any]:
    """Real models, 16 streams."""
    recipe = load_recipe(args.recipe, ["cascade.slots=16", *args.set])
    work = requests(24 if args.quick else 48, args.max_tokens)
    print(f"\nlockstep: {recipe.name}, 16 streams, {len(work)} questions")
    with (
        local_ray(),
        launch(with_policy(recipe, "adaptive")) as adaptive,
        launch(with_policy(recipe, "lock_step")) as lock,
    ):
        runs = turn_about(
            {
                "pipelined": lambda: drive(adaptive, work, 16),
                "lock step": lambda: drive(lock, work, 16, batches=True),
                "lock step, rows join": lambda: drive(lock, work, 16),
            },
            args.rounds,
        )
        decisions = {name: adaptive.stats()[name]["decision"] for name in recipe.cascade.levels[1:]}
    for name, each in runs.items():
        show(name, each)
    print(f"  decided: {decisions}")
    return {
        "pipelined_vs_lockstep": round(ratio(runs, "pipelined", "lock step"), 3),
        "pipelined_vs_lockstep_rows_join": round(ratio(runs, "pipelined", "lock step, rows join"), 3),
        "latency_hidden": round(statistics.median(run.hidden for run in runs["pipelined"]), 3),
    }


def one_stream(args: argparse.Namespace) -> dict[str, Any]:
    """Real models, one stream, lock step at every block length."""
    recipe = load_recipe(args.recipe, args.set)
    work = requests(6 if args.quick else 10, args.max_tokens)
    print(f"\none_stream: {recipe.name}, {len(work)} questions")
    edges = len(recipe.cascade.levels) - 1
    ratios: dict[int, float] = {}
    with local_ray(), launch(with_policy(recipe, "adaptive")) as adaptive:
        for block in (4, 12) if args.quick else BLOCKS:
            with launch(with_policy(recipe, "lock_step", num_draft_tokens=(block,) * edges)) as lock:
                runs = turn_about(
                    {
                        "pipelined": lambda: drive(adaptive, work, 1),
                        f"lock step, {block}": lambda: drive(lock, work, 1),
                    },
                    args.rounds,
                )
            for name, each in runs.items():
                show(name, each)
            ratios[block] = ratio(runs, *runs)
    best = min(ratios, key=lambda block: ratios[block])
    print(f"  the best synchronous block is {best}")
    return {"async_vs_sync_one_stream": round(ratios[best], 3), "best_sync_block": best}


def idle(args: argparse.Namespace) -> dict[str, Any]:
    """All actors of a pipeline at rest."""
    recipe = load_recipe(args.recipe, args.set)
    seconds = 5.0 if args.quick else 20.0
    with local_ray():
        with launch(recipe) as pipeline:
            drive(pipeline, requests(2, args.max_tokens), 1)
            count = len(_actors())
            share = _share_of_a_core(seconds)
        bare = [_bare_actor() for _ in range(count)]
        floor = _share_of_a_core(seconds)
        del bare
    print(f"\nidle: {count} actors burn {100 * share:.2f} % of a core, as many that do nothing {100 * floor:.2f} %")
    return {"idle_core_share": round(share - floor, 4), "idle_core_share_with_ray": round(share, 4)}


class Bare:
    """An actor that does nothing."""

    def ready(self) -> bool:
        """It runs."""
        return True


def _bare_actor() -> Any:
    import ray

    actor: Any = ray.remote(Bare).options(num_cpus=0, max_concurrency=8).remote()
    ray.get(actor.ready.remote(), timeout=60)
    return actor


def _share_of_a_core(seconds: float) -> float:
    pids = _actors()
    time.sleep(1.0)
    before = sum(map(_cpu_s, pids))
    time.sleep(seconds)
    return (sum(map(_cpu_s, pids)) - before) / seconds


def _actors() -> list[int]:
    """Processes that Ray has named after an actor of ours."""
    kinds = (EventEncoderStage, AdapterVerifierStage, Drafter, MidVerifier, Target, Controller, Bare)
    names = {f"ray::{kind.__name__}" for kind in kinds}
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_text().split("\0")[0].split(".")[0] in names:
                pids.append(int(path.parent.name))
    return pids


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def scenes_without_models(
    count: int, *, speculate: bool = True, seconds: Sequence[float] = (0.05,)
) -> list[GenerateRequest]:
    """Questions about recordings that only have a length, for emulated devices."""
    import numpy as np

    made = []
    for i in range(count):
        t = np.linspace(0, 1e6 * seconds[i % len(seconds)], 50).astype(np.int64)
        x = np.full(50, i % 100, np.uint16)
        events = Events(t, x, x, np.zeros(50, np.uint8), width=128, height=128)
        question = f"What is in clip {i}?"
        made.append(
            GenerateRequest(
                events=events, question=question, sampling=SamplingParams(max_tokens=64), speculate=speculate
            )
        )
    return made


def emulated(args: argparse.Namespace) -> dict[str, Any]:
    """5, 25 and 100 ms."""
    recipe = load_recipe("benchmarks/recipes/emulated_5_25_100.toml", args.set)
    work = scenes_without_models(32 if args.quick else 64)
    print(f"\nemulated: {recipe.name}, 16 streams, {len(work)} questions, agreement {recipe.emulation.agreement}")  # type: ignore[union-attr]
    with local_ray(), launch(recipe) as pipeline:
        runs = turn_about({"16 streams": lambda: drive(pipeline, work, 16)}, args.rounds)
        alone = [replace(request, speculate=False) for request in work[:4]]
        one = turn_about(
            {"1 stream": lambda: drive(pipeline, work[:4], 1), "1 stream, alone": lambda: drive(pipeline, alone, 1)}, 1
        )
    for name, each in (runs | one).items():
        show(name, each)
    median = runs["16 streams"]
    return {
        "bottleneck_efficiency": round(statistics.median(max(run.busy_s.values()) / run.wall_s for run in median), 3),
        "latency_hidden": round(statistics.median(run.hidden for run in median), 3),
        "coordination_overhead": round(statistics.median(run.coordination for run in median), 4),
        "emulated_one_stream_vs_alone": round(ratio(one, "1 stream", "1 stream, alone"), 3),
    }


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Emulated devices at 1, 4 and 16 streams, written down for `python -m benchmarks.simulator --validate FILE`."""
    recipe = load_recipe("benchmarks/recipes/emulated_5_25_100.toml", args.set)
    assert recipe.emulation is not None
    stages = tuple(replace(stage, profile=replace(stage.profile, prefill_ms=0.0)) for stage in recipe.stages)  # type: ignore[type-var]
    recipe = replace(recipe, stages=stages)
    runs: list[MeasuredRun] = []
    print("\nmeasured: simulated over measured tokens per second, emulated devices")
    with local_ray(), launch(recipe) as pipeline:
        drive(pipeline, scenes_without_models(8), 4)
        for streams, count in ((1, 4), (4, 12), (16, 48)):
            run = drive(pipeline, scenes_without_models(count), streams)
            one = _written(recipe, run, streams, count)
            runs.append(one)
            print(f"  {streams} streams: {one.simulated().tokens_per_s / one.tokens_per_s:.3f}", flush=True)
    if args.measured is not None:
        args.measured.write_text(json.dumps({"runs": [run.to_dict() for run in runs]}))
    worst = max(abs(run.simulated().tokens_per_s / run.tokens_per_s - 1) for run in runs)
    return {"simulator_worst_error": round(worst, 3)}


def _written(recipe: Recipe, run: Run, streams: int, count: int) -> MeasuredRun:
    assert recipe.emulation is not None
    stages = []
    for stage in recipe.stages:
        assert isinstance(stage.profile, StepProfile)
        name, passes = stage.name, max(1.0, run.passes[stage.name])
        cost = StepCost(run.busy_s[name] / passes)
        stages.append(MeasuredStage(name, cost, overhead_s=(run.awake_s[name] - run.busy_s[name]) / passes))
    return MeasuredRun(
        name=f"{streams} streams",
        streams=streams,
        requests=count,
        tokens=64,
        tokens_per_s=run.tokens_per_s,
        stages=tuple(stages),
        agreement=recipe.emulation.agreement,
        policy=MeasuredPolicy(recipe.policy.mode, recipe.cascade.num_draft_tokens),
        upstream_s=recipe.deadlines.upstream_s,
        window=recipe.cascade.window,
    )


def useless(args: argparse.Namespace) -> dict[str, Any]:
    """Never slower than the target alone, or by how much."""
    kinds = {"always wrong": (5.0, 0.0), "ten times slower": (1000.0, 0.8), "dead": (5.0, 0.8)}
    out: dict[str, float] = {}
    print("\nuseless: adaptive over alone, medians")
    with local_ray():
        for kind, (step_ms, agreement) in kinds.items():
            with launch(_two_emulated(step_ms, agreement)) as pipeline:
                if kind == "dead":
                    import ray

                    ray.kill(pipeline.stages["light"].actor)
                _beside_alone(kind, pipeline, scenes_without_models, args, out)
        with tempfile.TemporaryDirectory() as folder, launch(_random_drafter(Path(folder))) as pipeline:
            _beside_alone("random weights, real models", pipeline, lambda n: requests(n, args.max_tokens), args, out)
    return {"useless_drafters": out, "worst_vs_alone": min(out.values())}


def _beside_alone(
    kind: str,
    pipeline: Pipeline,
    make: Callable[[int], list[GenerateRequest]],
    args: argparse.Namespace,
    out: dict[str, float],
) -> None:
    for streams in (1, 16) if args.quick else (1, 4, 16):
        work = make(max(4, 2 * streams))
        alone = [replace(request, speculate=False) for request in work]
        runs = turn_about(
            {"with": lambda: drive(pipeline, work, streams), "alone": lambda: drive(pipeline, alone, streams)},  # noqa: B023
            args.rounds,
        )
        out[f"{kind}, {streams}"] = round(ratio(runs, "with", "alone"), 3)
        print(f"  {kind}, {streams} streams: {out[f'{kind}, {streams}']}", flush=True)


def _two_emulated(step_ms: float, agreement: float) -> Recipe:
    """A drafter of so many ms a step in front of the 100 ms target."""
    recipe = load_recipe("benchmarks/recipes/emulated_5_25_100.toml")
    light, _, heavy = recipe.stages
    assert recipe.emulation is not None and isinstance(light.profile, StepProfile)
    return replace(
        recipe,
        cascade=replace(recipe.cascade, levels=("light", "heavy"), num_draft_tokens=(4,)),
        stages=(replace(light, profile=replace(light.profile, base_ms=step_ms)), heavy),
        emulation=replace(recipe.emulation, agreement=(agreement,)),
    )


def _random_drafter(folder: Path) -> Recipe:
    """light_heavy with a light of the bundled shape and random weights."""
    from cascade_runtime.models import load_checkpoint
    from cascade_runtime.models.family import build_model, save_model
    from cascade_runtime.models.stage_source import checkpoint_path

    recipe = load_recipe("light_heavy", ["cascade.slots=16"])
    tokenizer = load_checkpoint(checkpoint_path(recipe.target), parts=()).tokenizer
    save_model(build_model("light", tokenizer), tokenizer, folder)
    return replace(recipe, stages=(replace(recipe.stages[0], checkpoint=str(folder)), recipe.stages[1]))


def clips(args: argparse.Namespace) -> dict[str, Any]:
    """Recorded stage times, recorded answers."""
    if args.traces is None:
        print("\nclips: left out, no --traces")
        return {}
    from benchmarks.recipes.stage_times import write_recipe

    seconds = (2.0, 4.0, 5.0, 8.0, 10.0, 16.0, 20.0)
    with tempfile.TemporaryDirectory() as folder, local_ray():
        path = write_recipe(
            args.traces / "stage_latency_profile.json",
            args.traces / "eventgpt_videollava_tokens_1100.json",
            Path(folder),
            gpus=2,
            per_token_ms=2.58,
            drafters="ngram",
        )
        work = scenes_without_models(14 if args.quick else 28, seconds=seconds)
        alone = [replace(request, speculate=False) for request in work]
        with launch(load_recipe(path)) as pipeline:
            runs = turn_about(
                {
                    "one after the other, alone": lambda: drive(pipeline, alone, 1),
                    "pipelined, alone": lambda: drive(pipeline, alone, 8),
                    "pipelined, drafts": lambda: drive(pipeline, work, 8),
                },
                1 if args.quick else 3,
            )
    print(f"\nclips: {len(work)} clips of {seconds} s, emulated")
    for name, each in runs.items():
        show(name, each)
    return {
        "clips_pipelined_vs_sequential": round(ratio(runs, "pipelined, alone", "one after the other, alone"), 3),
        "clips_with_drafts_vs_sequential": round(ratio(runs, "pipelined, drafts", "one after the other, alone"), 3),
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "lockstep": lockstep,
    "one_stream": one_stream,
    "emulated": emulated,
    "measured": measured,
    "useless": useless,
    "clips": clips,
    "idle": idle,
}


def main() -> None:
    """Run the parts and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer questions, rounds and variants")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=0, help="default 5, with --quick 2")
    parser.add_argument("--traces", type=Path, help="a folder with recorded stage times and answers, for `clips`")
    parser.add_argument("--measured", type=Path, help="where `measured` writes its runs")
    parser.add_argument("--recipe", default="three_level")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 5)
    result: dict[str, Any] = {}
    for name in args.only:
        result |= PARTS[name](args)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
