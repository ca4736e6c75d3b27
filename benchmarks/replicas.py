"""What replicas of a stage bring: tokens a second, and how long a stream is silent when its target is killed.

    python -m benchmarks.replicas [--only share|kill] [--rounds 3] [--streams 16] [--kills 5]

share   one pipeline; the same with two targets behind one drafter and one mid verifier; two whole pipelines' worth of
        devices in one (two of every level). Turn about, on emulated devices whose passes grow with what is in them.
        Beside each what the planner's picture of it gives: one of the equal slices of the requests, simulated.
kill    a stream of pieces while its target is killed: the longest silence, with one target and with two. With one it
        lasts until the process is started anew and the prompt is fed again; with two until that is done at the other.
        Here nothing is loaded: with real weights their loading comes on top of the first, not of the second.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from benchmarks.faults.recipe import PATH
from benchmarks.pipeline.run import drive, local_ray, ratio, scenes_without_models, show, turn_about
from cascade_runtime.api import Answer
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import Recipe, SamplingParams, load_recipe
from cascade_runtime.config.emulation import StepProfile
from cascade_runtime.emulation.level import step_cost
from cascade_runtime.planning.roofline import crowded
from cascade_runtime.scheduling.from_recipe import policy_from_recipe
from cascade_runtime.simulation import Agreement, Link, Load, Stage, simulate

_COSTS = (
    "stages.light.profile.per_token_ms=0.2",
    "stages.mid.profile.per_token_ms=1",
    "stages.heavy.profile.per_token_ms=4",
)


def recipe(light: int = 1, mid: int = 1, heavy: int = 1) -> Recipe:
    """The emulated cascade, with so many of each level."""
    counts = {"light": light, "mid": mid, "heavy": heavy}
    replicas = [f"stages.{name}.replicas={count}" for name, count in counts.items()]
    return load_recipe(PATH, [*_COSTS, *replicas, "supervision.restarts=1000", "deadlines.start_s=300"])


def share(args: argparse.Namespace) -> None:
    """Tokens per second."""
    from cluster.launch import launch

    setups = {
        "one of each": recipe(),
        "two targets, the rest once": recipe(heavy=2),
        "two of each": recipe(2, 2, 2),
    }
    work = scenes_without_models(3 * args.streams)
    print(f"{args.streams} streams, {recipe().cascade.slots} slots in all; emulated, no model ran")
    with local_ray(), ExitStack() as stack:
        pipelines = {name: stack.enter_context(launch(each)) for name, each in setups.items()}
        runs = turn_about(
            {name: lambda each=each: drive(each, work, args.streams) for name, each in pipelines.items()}, args.rounds
        )
    for name, each in runs.items():
        show(name, each)
    first = next(iter(runs))
    planned = {name: simulated(each, args.streams) for name, each in setups.items()}
    for name in list(runs)[1:]:
        said = f"{planned[name] / planned[first]:.2f}x by the planner's picture"
        print(f"  {name}: {ratio(runs, name, first):.2f}x {first} ({said})")


def simulated(recipe: Recipe, streams: int) -> float:
    """Tokens per second of one slice, by how many there are (`planning/confirm.py`), with the agreement, costs and
    policies of the recipe; a prompt holds up its target as one more pass would.
    """
    slices = max(stage.replicas for stage in recipe.stages)
    rows, tokens = streams // slices, 64
    stages = []
    for k, stage in enumerate(recipe.stages):
        assert isinstance(stage.profile, StepProfile)
        cost = crowded(step_cost(stage.profile), slices / stage.replicas)
        stages.append(Stage(stage.name, policy_from_recipe(recipe, k, cost), cost))
    result = simulate(
        stages,
        Agreement(list(recipe.emulation.agreement)),
        Load(streams=rows, requests=4 * rows, tokens=tokens),
        [Link(1e-4)] * (len(stages) - 1),
        upstream_s=recipe.deadlines.upstream_s,
        window=recipe.cascade.window,
    )
    profile = recipe.target.profile
    assert isinstance(profile, StepProfile)
    prefill_s = profile.prefill_ms / 1000
    return slices / (1 / result.tokens_per_s + prefill_s / tokens)


def kill(args: argparse.Namespace) -> None:
    """Seconds of silence."""
    for count in (1, 2):
        silences, same = list[float](), True
        with CascadeClient("ray", recipe=recipe(heavy=count)) as client:
            pipeline: Any = client._async._transport.pipeline  # type: ignore[attr-defined]
            (request,) = scenes_without_models(1)
            request = replace(request, sampling=SamplingParams(max_tokens=200, seed=3, temperature=0.7))
            reference = client.generate(request.events, request.question, sampling=request.sampling).token_ids
            for _ in range(args.kills):
                heard, answer = [time.monotonic()], ()
                for number, update in enumerate(
                    client.stream(request.events, request.question, sampling=request.sampling)
                ):
                    heard.append(time.monotonic())
                    if number == 5:
                        stats, targets = pipeline.stats(), pipeline.recipe.target.members
                        (has,) = [name for name in targets if stats[name].get("active_rows")]
                        os.kill(pipeline.supervisor.pulses()[has].pid, signal.SIGKILL)
                        heard.append(time.monotonic())
                    if isinstance(update, Answer):
                        answer = update.token_ids
                silences.append(max(b - a for a, b in itertools.pairwise(heard)))
                same = same and answer == reference
                while pipeline.supervisor.down:
                    time.sleep(0.1)
                time.sleep(1.0)
        said = ", ".join(f"{each:.2f}" for each in sorted(silences))
        name = f"{count} target{'s' if count > 1 else ''}"
        print(
            f"  {name:<12}longest silence of a stream: median {statistics.median(silences):.2f} s ({said}); "
            f"{'all answers the same' if same else 'ANSWERS DIFFER'}",
            flush=True,
        )


def main() -> None:
    """Parse arguments, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("share", "kill"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--kills", type=int, default=5)
    args = parser.parse_args()
    for part in (share, kill):
        if args.only in (None, part.__name__):
            part(args)


if __name__ == "__main__":
    main()
