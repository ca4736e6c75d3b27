"""Where the stages run: the one place that makes Ray actors of the plain classes in `actors/`.

    launch(recipe) -> Pipeline
        1. a placement group with what the recipe asks for (placement.py), refused by name if the cluster has no room
        2. five kinds of actors: encoder, adapter, drafter, mid verifiers, target, and the controller in front of them
        3. the checks that need all of them: one vocabulary, one feature space
        4. links between neighbours, then the loops

    driver -> controller actor -> encoder -> adapter -> light <-> mid <-> heavy      (<-> channels, -> actor calls)

Control is actor calls with timeouts, features are objects of the store, token blocks go through channels. Actors are
never restarted or retried by Ray: a silently repeated loop has lost its state. What dies or hangs is started anew by
the supervisor (`cluster/supervision`), which also tells the controller.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.controller import MAX_WAITING, Controller
from actors.handles import ask
from actors.stage_kind import stage_kind
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.channels import ChannelSpec
from cascade_runtime.config import Recipe, links_between, stage_of
from cascade_runtime.decoding.level import check_one_vocabulary
from cascade_runtime.errors import (
    CallLost,
    CapacityError,
    CascadeError,
    ConfigError,
    DeadlineExceeded,
    FeaturesLost,
    StageDied,
    StageError,
)
from cascade_runtime.tracing import Trace
from cluster.arenas import lean_malloc_of_children
from cluster.memory_check import check_memory
from cluster.nodes import read_nodes
from cluster.placement import CONTROLLER, Reserved, bundles, edge_between, places, reserve
from cluster.ray_auth import refuse_open_ray, tell_open_ray
from cluster.supervision.ray_crew import RayCrew
from cluster.supervision.supervisor import Recovery, Supervisor

log = logging.getLogger(__name__)

_CONTROL_THREADS = 8
_REASON = 160  # characters of what Ray says of a death, which can be a page
_OBJECT_STORE_BYTES = 400_000_000
FOREGROUND: dict[str, Any] = {"worker_niceness": 0}  # Ray's 15 starves a stage as soon as anything else wants the cores
Report = Callable[[str], None]


class RayStage:
    """A stage that is a Ray actor, as the controller sees it."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name, self.actor = name, actor

    def start(self, method: str, *args: Any) -> Any:
        """Begin a call; the reference may be an argument of another call."""
        return getattr(self.actor, method).remote(*args)

    def result(self, reference: Any, timeout_s: float) -> Any:
        """Wait for a call. Raises its own error, `DeadlineExceeded`, or `StageError` when the actor has died."""
        try:
            return ray.get(reference, timeout=timeout_s)
        except (RayError, GetTimeoutError) as error:
            raise plain_error(error, self.name) from None

    def ask(self, timeout_s: float, method: str, *args: Any, begun: Any = None) -> Any:
        """What a call gives that may be made more than once, see `actors.handles.ask`."""
        return ask(self, timeout_s, method, *args, begun=begun)


def plain_error(error: BaseException, stage: str) -> CascadeError:
    """Ray's error as one of ours."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, (ObjectStoreFullError, OutOfDiskError)):
        return CapacityError(f"stage {stage}: the object store is full ({type(cause).__name__})")
    if isinstance(error, RayTaskError):
        if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):  # of what it was given
            return FeaturesLost(stage, "-", f"what it was to work on is lost ({type(cause).__name__})")
        return cause if isinstance(cause, CascadeError) else StageError(stage, "-", f"{type(cause).__name__}: {cause}")
    if isinstance(error, GetTimeoutError):
        return DeadlineExceeded(f"stage {stage}: no answer in time")
    if isinstance(error, ActorUnavailableError):
        return CallLost(f"stage {stage}: a call was lost on its way")
    if isinstance(error, RayActorError):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1][:_REASON] if lines else "no reason was given"
        return StageDied(stage, "-", f"its process has died: {reason}")
    if isinstance(error, ObjectLostError):
        return FeaturesLost(stage, "-", f"what it had made is lost ({type(error).__name__})")
    return StageError(stage, "-", f"{type(error).__name__}: {error}")


@dataclass(eq=False)
class Pipeline:
    """A running pipeline. `controller` takes requests; `close` ends everything that was started."""

    recipe: Recipe
    controller: RayStage
    stages: dict[str, RayStage]
    group: Any
    owns_ray: bool
    backends: tuple[str, ...]
    reserved: Reserved
    supervisor: Supervisor | None = None  # None where the recipe wants no stage restarted
    closed: bool = False

    @property
    def mending(self) -> set[str]:
        """Stages that are down, and are being started or linked anew."""
        return set() if self.supervisor is None else self.supervisor.down - self.supervisor.given_up.keys()

    def restart(self, *names: str) -> list[Recovery]:
        """Start stages anew, one after the other, while requests go on: those named, or all. No request fails.

        Raises `ConfigError`, `StageError`, `DeadlineExceeded`.
        """
        if self.supervisor is None:
            raise ConfigError("supervision.restarts", 0, "more, where stages are to be restarted")
        return [self.supervisor.restart(name, self.recipe.deadlines.start_s) for name in names or tuple(self.stages)]

    def stats(self) -> dict[str, Any]:
        """Counters of the controller and of every language stage; of one that has died, its `problem`."""
        control_s = self.recipe.deadlines.control_s
        names = ("controller", *self.recipe.level_members)
        everything = {"controller": self.controller, **self.stages}
        references = {name: everything[name].start("stats") for name in names}
        told: dict[str, Any] = {}
        for name in names:
            try:
                told[name] = everything[name].ask(control_s, "stats", begun=references[name])
            except (StageError, DeadlineExceeded) as error:
                told[name] = {"name": name, "problem": str(error)}
        return told

    def generate(self, request: GenerateRequest) -> Answer:
        """The answer to one request, within its deadline. Raises what `Controller.generate` raises."""
        limit_s = self.recipe.deadlines.request_s + self.recipe.deadlines.control_s
        return self.controller.result(self.controller.start("generate", request, None), limit_s)

    def trace(self) -> list[Trace]:
        """What every stage has recorded, in the order of the pipeline: encoder, adapter, the levels from light on."""
        references = {name: stage.start("trace") for name, stage in self.stages.items()}
        control_s = self.recipe.deadlines.control_s
        return [self.stages[name].result(reference, control_s) for name, reference in references.items()]

    def close(self) -> None:
        """Drain, stop the loops, kill the actors, give back the placement group. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        drain_s, control_s = self.recipe.deadlines.drain_s, self.recipe.deadlines.control_s
        try:
            self.controller.result(self.controller.start("drain", drain_s), drain_s + control_s)
        except CascadeError as error:
            log.warning("drain: %s", error)
        if self.supervisor is not None:
            self.supervisor.stop()
        stops = {name: stage.start("stop") for name, stage in self.stages.items()}
        for name, reference in stops.items():
            try:
                self.stages[name].result(reference, control_s)
            except CascadeError as error:
                log.warning("stop: %s", error)
        _tear_down([self.controller, *self.stages.values()], self.group, self.owns_ray)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def launch(recipe: Recipe, *, address: str | None = None, report: Report = lambda line: None) -> Pipeline:
    """Start a pipeline on the Ray that this process is connected to, at `address`, or on a local one of its own.

    Raises `ConfigError` where the cluster cannot hold the recipe or the checkpoints do not fit together, and
    `DeadlineExceeded` when it is not up within `deadlines.start_s`. Whatever was started by then is taken down again.
    """
    recipe.check_runs_apart()
    deadline = time.monotonic() + recipe.deadlines.start_s
    owns_ray = connect(recipe, address, report)
    actors: list[RayStage] = []
    group = None
    try:
        check_memory(recipe, read_nodes())
        reserved = reserve(recipe, deadline)
        group = reserved.group
        edges = _edges(recipe, reserved)
        backends = tuple(spec.backend for spec in edges.values())
        several = {name: len(each) for name, each in recipe.members.items() if len(each) > 1}
        shown = "".join(f", {name} {count} times" for name, count in several.items())
        report(f"starting five stages and the controller{shown}")
        stages = _start_stages(recipe, reserved, actors)
        controller = _start_controller(recipe, stages, reserved, actors)  # it loads while they do
        infos = _infos(stages, deadline, report)
        check_one_vocabulary({name: infos[name]["tokenizer"] for name in recipe.level_members})
        _link(recipe, stages, edges, deadline)
        report(f"linked: {', '.join(backends) or 'one level, nothing to link'}")
        controller.ask(max(0.1, deadline - time.monotonic()), "stats")
        supervisor = _supervise(recipe, stages, controller, reserved) if recipe.supervision.restarts else None
        return Pipeline(recipe, controller, stages, group, owns_ray, backends, reserved, supervisor)
    except BaseException:
        _tear_down(actors, group, owns_ray)
        raise


def connect(recipe: Recipe, address: str | None, report: Report, *, pipelines: int = 1) -> bool:
    """Make sure this process is connected to a Ray, one of its own having room for so many pipelines; whether it was
    started here.
    """
    if ray.is_initialized():
        return False
    report("starting Ray" if address is None else f"connecting to Ray at {address}")
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is not None:
        ray.init(address=address, **quiet)
        tell_open_ray(address, report)
    else:
        refuse_open_ray()
        asked = sum(bundle.resources.get("CPU", 0.0) for bundle in bundles(recipe))
        cpus = max(os.cpu_count() or 1, round(pipelines * asked + 1))
        with lean_malloc_of_children():
            ray.init(
                address="local",
                num_cpus=cpus,  # bookkeeping only: threads per stage are the recipe's
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _system_config=FOREGROUND,
                **quiet,
            )
    return True


def _start_stages(recipe: Recipe, reserved: Reserved, actors: list[RayStage]) -> dict[str, RayStage]:
    names, stages = list(places(recipe)), dict[str, RayStage]()
    for name in sorted(names, key=lambda each: bool(reserved.share(each).host)):  # hosts first
        stages[name] = RayStage(name, _create_stage(recipe, reserved, stages, name))
        actors.append(stages[name])
    return {name: stages[name] for name in names}


def _create_stage(recipe: Recipe, reserved: Reserved, stages: Mapping[str, RayStage], name: str) -> Any:
    """The actor of one stage, or one replica of it, in its own bundle. One that lives on the first of its host's GPUs
    waits until that is known.
    """
    kind, arguments = stage_kind(recipe, name)
    threads = _CONTROL_THREADS + (recipe.cascade.slots if name in recipe.target.members else 0)
    environment: dict[str, str] = {}
    if host := reserved.share(name).host:
        gpus = stages[host].ask(recipe.deadlines.start_s, "info")["visible_gpus"]
        environment = {"CUDA_VISIBLE_DEVICES": gpus.partition(",")[0]}
    return _remote(kind, reserved, name, threads, environment).remote(*arguments)


def _remote(
    kind: type, reserved: Reserved, name: str, threads: int, environment: Mapping[str, str] | None = None
) -> Any:
    """A pulse has a thread of its own: where all others encode, a stage is busy and not silent. Ray keeps no events of
    calls: pulses would fill its books, and its dashboard.
    """
    share, index = reserved.share(name), reserved.index(name)
    actor, method, pulse = cast(Any, ray.remote), cast(Any, ray.method), cast(Any, kind).pulse
    method(concurrency_group="pulse")(pulse)  # marks it; naming the group at each call would make a class each time
    return actor(concurrency_groups={"pulse": 1})(kind).options(
        num_cpus=share.num_cpus,
        num_gpus=share.num_gpus,
        max_concurrency=threads,
        max_restarts=0,
        max_task_retries=0,
        enable_task_events=False,
        runtime_env={"env_vars": dict(environment)} if environment else None,
        scheduling_strategy=PlacementGroupSchedulingStrategy(reserved.group, placement_group_bundle_index=index),
    )


def _start_controller(
    recipe: Recipe, stages: Mapping[str, RayStage], reserved: Reserved, actors: list[RayStage]
) -> RayStage:
    controller = RayStage(CONTROLLER, _create_controller(recipe, stages, reserved, 1))
    actors.append(controller)
    return controller


def _create_controller(recipe: Recipe, stages: Mapping[str, RayStage], reserved: Reserved, first_handle: int) -> Any:
    threads = recipe.cascade.slots + MAX_WAITING + _CONTROL_THREADS
    return _remote(Controller, reserved, CONTROLLER, threads).remote(recipe, dict(stages), first_handle)


def _supervise(recipe: Recipe, stages: Mapping[str, RayStage], controller: RayStage, reserved: Reserved) -> Supervisor:
    handles = {**stages, CONTROLLER: controller}
    new_stage = partial(_create_stage, recipe, reserved, stages)
    crew = RayCrew(recipe, reserved, handles, new_stage, partial(_create_controller, recipe, stages, reserved))
    return Supervisor(recipe, handles, crew)


def _infos(stages: Mapping[str, RayStage], deadline: float, report: Report) -> dict[str, Any]:
    references = {name: stage.start("info") for name, stage in stages.items()}
    infos = {}
    for name, reference in references.items():
        infos[name] = stages[name].ask(max(0.1, deadline - time.monotonic()), "info", begun=reference)
        if "weight_bytes" in infos[name]:
            info = infos[name]
            megabytes = (info["weight_bytes"] + info["kv_bytes"]) / 1e6
            report(f"{name}: {megabytes:.0f} MB of weights and KV on {info['device']}, {info['threads']} thread(s)")
    return infos


def _edges(recipe: Recipe, reserved: Reserved) -> dict[tuple[str, str], ChannelSpec]:
    """Which way token blocks go between each two neighbours. Raises `ConfigError` where the recipe's way does not
    reach.
    """
    return {
        pair: replace(edge_between(reserved, *pair, recipe.channels.backend), epoch=epoch)
        for light, heavy in itertools.pairwise(recipe.stages)
        for pair, epoch in links_between(light.members, heavy.members).items()
    }


def _link(
    recipe: Recipe, stages: Mapping[str, RayStage], edges: Mapping[tuple[str, str], ChannelSpec], deadline: float
) -> None:
    """Connect neighbours: the lighter one listens."""
    specs: dict[str, list[ChannelSpec]] = {name: [] for name in recipe.level_members}
    for (light, heavy), spec in edges.items():
        number = recipe.members[stage_of(heavy)].index(heavy)
        specs[heavy].append(stages[light].ask(max(0.1, deadline - time.monotonic()), "listen", spec, number))
    left_s = max(0.1, deadline - time.monotonic())
    references = {name: stages[name].start("link", specs[name], left_s) for name in specs}
    for name, reference in references.items():
        stages[name].ask(left_s, "link", specs[name], left_s, begun=reference)


def _tear_down(actors: list[RayStage], group: Any, owns_ray: bool) -> None:
    for stage in actors:
        ray.kill(stage.actor, no_restart=True)
    if group is not None:
        remove_placement_group(group)
    if owns_ray:
        ray.shutdown()
