"""The `cascade` command: parse, call, print.

    cascade demo                          the target alone and the cascade answer the same question, side by side
    cascade generate FILE -q QUESTION     ask about a recording
    cascade events info|render FILE       what a recording holds; a picture of it
    cascade train family --out DIR        train the bundled models again
    cascade train heads --kind KIND       train a drafting head beside the bundled heavy
    cascade train distil                  teach a drafter what its verifier says
    cascade trace -o FILE                 what every stage does when, as a picture or for Perfetto
    cascade serve RECIPE                  answer over HTTP
    cascade doctor                        what this machine can run
    cascade nodes                         what a running Ray cluster offers, as a cluster file for `plan`
    cascade plan RECIPE --cluster FILE    which stage on which device of a cluster, and what that should bring
    cascade batch -i FILE -o FILE         the questions of a file, each answered once, whatever stops the run
    cascade bench chaos                   load while stages are killed and stopped; every answer compared
    cascade dashboards -o DIR             a Grafana dashboard and a Prometheus scrape configuration
    cascade edge FILE --server HOST:PORT  ask a core far away about every window of a recording, as it is replayed
    cascade edge-server RECIPE            the core

Exit codes: 0 done; 1 it failed; 2 a wrong option, recipe or request; 3 an input file that cannot be read. An error of
the project's own is one line on stderr; a traceback is a bug. What a command needs is imported when it runs, so
`--help` and `events` never load torch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cascade_runtime
from cascade_runtime.config import Recipe, SamplingParams, load_recipe, recipe_names
from cascade_runtime.errors import CascadeError, ConfigError, EventFormatError, InputError
from cluster.arenas import keep_few_arenas
from cluster.cli_batch import add_batch
from cluster.cli_bench import add_bench
from cluster.cli_dashboards import add_dashboards
from cluster.cli_distil import add_distil
from cluster.cli_edge import add_edge
from cluster.cli_heads import add_heads
from cluster.cli_nodes import add_nodes
from cluster.cli_plan import add_plan
from cluster.cli_serve import add_serve

if TYPE_CHECKING:
    from cascade_runtime.api import Answer
    from cascade_runtime.events import Events

OK, FAILED, USAGE, BAD_FILE = 0, 1, 2, 3
TARGETS = ("in-process", "ray")
_RECIPE = "three_level"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Wrong options exit through argparse, with code 2."""
    args = _parser().parse_args(argv)
    keep_few_arenas()
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except EventFormatError as error:
        return _complain(error, BAD_FILE)
    except (ConfigError, InputError) as error:
        return _complain(error, USAGE)
    except CascadeError as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:  # the reader of our output is gone (`cascade ... | head`): nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _complain(error: object, code: int) -> int:
    line = " ".join(str(error).split())
    print("cascade: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    return code


# -- the commands ----------------------------------------------------------------------------------------------------


def _demo(args: argparse.Namespace) -> int:
    recipe = _recipe(args)
    from cluster.demo import run_demo

    return run_demo(target=args.target, seed=args.seed, question=args.question, recipe=recipe, color=_color())


def _generate(args: argparse.Namespace) -> int:
    from cascade_runtime.transports import is_remote

    recipe = None if is_remote(args.target) else _recipe(args)
    if recipe is None and (args.recipe or args.set):
        raise ConfigError("--recipe", args.recipe or args.set[0], "none for a server: it has its own")
    events = _read(args.file)
    sampling = SamplingParams(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        max_tokens=args.max_tokens,
    )
    from cascade_runtime.client import CascadeClient

    if recipe is not None and sys.stderr.isatty():
        print(f"loading {', '.join(recipe.cascade.levels)} ...", file=sys.stderr, flush=True)
    with CascadeClient(target=args.target, recipe=recipe) as client:
        answer = client.generate(events, args.question, sampling=sampling)
    if args.json:
        print(json.dumps(answer.to_dict()))
    else:
        from cascade_runtime.api.answer import legend

        print(f"{answer.colored()}\n{legend(answer.levels)}" if _color() else answer.text)
        print(_summary(answer), file=sys.stderr)
    return OK


def _events_info(args: argparse.Namespace) -> int:
    from cascade_runtime.events.picture import describe

    facts = describe(_read(args.file))
    print(json.dumps(facts) if args.json else _table(facts))
    return OK


def _events_render(args: argparse.Namespace) -> int:
    from cascade_runtime.events.picture import preview, render_png

    events = _read(args.file)
    try:
        render_png(events, args.output)
    except OSError as error:
        raise CascadeError(f"{args.output}: {error.strerror or error}") from error
    if not args.quiet:
        print(preview(events))
    print(f"{args.output}: {args.output.stat().st_size} bytes", file=sys.stderr)
    return OK


def _train_family(args: argparse.Namespace) -> int:
    from cascade_runtime.training import train_family

    train_family(args.out, quick=args.quick)
    return OK


def _trace(args: argparse.Namespace) -> int:
    from cluster.traced_run import run_trace

    return run_trace(_recipe(args), args.output, args.metrics, args.streams, args.requests, args.seed, sys.stdout)


def _doctor(args: argparse.Namespace) -> int:
    from cluster.doctor import examine

    report = examine()
    print(json.dumps(report.to_dict()) if args.json else report.text())
    return OK if report.healthy else FAILED


# -- what they share -------------------------------------------------------------------------------------------------


def _recipe(args: argparse.Namespace) -> Recipe:
    return load_recipe(args.recipe or _RECIPE, args.set)


def _read(path: Path) -> Events:
    """The recording in a file, video or folder of frames; whatever is wrong with it is an `EventFormatError`."""
    from cascade_runtime.client import to_events

    try:
        events = to_events(path)
    except OSError as error:
        raise EventFormatError(str(path), "open", error.strerror or str(error)) from error
    except EventFormatError:
        raise
    except InputError as error:
        raise EventFormatError(str(path), error.field, f"got {error.value!r}; allowed: {error.allowed}") from error
    if len(events) == 0:
        raise EventFormatError(str(path), "events", "the recording holds no event")
    return events


def _color() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _summary(answer: Answer) -> str:
    """One line: how much, how fast, who said it, how often each edge agreed."""
    shares = ", ".join(f"{level} {answer.produced_by.count(level)}" for level in answer.levels)
    parts = [
        f"{len(answer.token_ids)} tokens in {answer.timings.total_ms:.0f} ms",
        f"first after {answer.timings.ttft_ms:.0f} ms",
        f"{answer.target_passes} target passes",
        f"said by {shares}",
    ]
    parts += [f"{edge.edge} accepted {edge.acceptance_rate:.0%}" for edge in answer.edges if edge.num_drafts]
    return " | ".join([*parts, *answer.notes])


def _table(facts: Mapping[str, Any]) -> str:
    width = max(map(len, facts), default=0)
    return "\n".join(f"{name:<{width}}  {_shown(value)}" for name, value in facts.items())


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items())
    return " x ".join(map(_shown, value)) if isinstance(value, tuple | list) else str(value)


# -- options ---------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cascade", description="Ask about event-camera recordings: the largest model's answer, sooner."
    )
    parser.add_argument("--version", action="version", version=f"cascade-runtime {cascade_runtime.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the target alone and the cascade, side by side")
    _add_setup(demo)
    demo.add_argument("--seed", type=int, default=9, metavar="N", help="which scene is simulated")
    demo.add_argument("-q", "--question", help="ask this; the demo has a question of its own")
    demo.set_defaults(run=_demo)

    generate = commands.add_parser("generate", help="ask about a recording")
    generate.add_argument("file", type=Path, metavar="FILE")
    generate.add_argument("-q", "--question", required=True)
    generate.add_argument(
        "--target",
        default="in-process",
        metavar="WHERE",
        help="in-process, ray, ray://HOST:PORT of a cluster that runs here, or a server's address, http://HOST:PORT "
        "(its key: CASCADE_API_KEY)",
    )
    _add_recipe(generate)
    _add_sampling(generate)
    generate.add_argument("--json", action="store_true", help="everything about the answer as one line of JSON")
    generate.set_defaults(run=_generate)

    _add_events(commands.add_parser("events", help="look at a recording"))

    train = commands.add_parser("train", help="train models").add_subparsers(required=True, metavar="WHAT")
    family = train.add_parser("family", help="the bundled light, mid and heavy, their event encoder and adapter")
    family.add_argument("--out", type=Path, required=True, metavar="DIR")
    family.add_argument("--quick", action="store_true", help="minutes: proves the path, teaches little")
    family.set_defaults(run=_train_family)
    add_heads(train)
    add_distil(train)

    _add_trace(
        commands.add_parser("trace", help="what every stage does when: a Gantt chart, a Perfetto trace, counters")
    )

    doctor = commands.add_parser("doctor", help="what this machine can run")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_doctor)

    add_serve(commands)
    add_plan(commands)
    add_nodes(commands)
    add_batch(commands)
    add_bench(commands)
    add_dashboards(commands)
    add_edge(commands, _read)
    return parser


def _add_events(events: argparse.ArgumentParser) -> None:
    verbs = events.add_subparsers(required=True, metavar="VERB")
    info = verbs.add_parser("info", help="sensor, span, rate, and what the events say about motion")
    info.add_argument("file", type=Path, metavar="FILE")
    info.add_argument("--json", action="store_true")
    info.set_defaults(run=_events_info)
    render = verbs.add_parser("render", help="a picture of the recording")
    render.add_argument("file", type=Path, metavar="FILE")
    render.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.png")
    render.add_argument("--quiet", action="store_true", help="no preview in the terminal")
    render.set_defaults(run=_events_render)


def _add_trace(trace: argparse.ArgumentParser) -> None:
    _add_recipe(trace)
    trace.add_argument(
        "-o",
        "--output",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.json|FILE.svg",
        help="a trace for ui.perfetto.dev, or a picture; repeatable",
    )
    trace.add_argument("--metrics", type=Path, metavar="FILE", help="the counters of the run, as Prometheus text")
    trace.add_argument("--streams", type=int, default=4, metavar="N", help="how many ask at the same time")
    trace.add_argument("--requests", type=int, default=3, metavar="N", help="questions of each stream")
    trace.add_argument("--seed", type=int, default=0, metavar="N", help="which scenes are simulated")
    trace.set_defaults(run=_trace)


def _add_setup(command: argparse.ArgumentParser) -> None:
    command.add_argument("--target", choices=TARGETS, default="in-process", help="where the stages run")
    _add_recipe(command)


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--recipe",
        metavar="NAME|FILE.toml",
        help=f"one of {', '.join(recipe_names())}, or a file; default {_RECIPE}",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="change one field of the recipe; repeatable",
    )


def _add_sampling(command: argparse.ArgumentParser) -> None:
    defaults = SamplingParams()
    command.add_argument("--max-tokens", type=int, default=defaults.max_tokens, metavar="N")
    command.add_argument("--temperature", type=float, default=defaults.temperature, metavar="T", help="0 is greedy")
    command.add_argument("--top-k", type=int, default=defaults.top_k, metavar="K", help="0 is off")
    command.add_argument("--top-p", type=float, default=defaults.top_p, metavar="P", help="1 is off")
    command.add_argument("--seed", type=int, default=defaults.seed, metavar="N")


if __name__ == "__main__":
    sys.exit(main())
