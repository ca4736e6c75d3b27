"""`MeasuredRun`: what a run of real processes was and brought, so that the simulator can run it again and be compared.

    {"runs": [{"name": "16 streams", "streams": 16, "requests": 64, "tokens": 50, "prompt": 0, "tokens_per_s": 812.4,
               "stages": [{"name": "light", "cost": {"base": .005, "per_row": 0, "per_token": 0, "per_position": 0},
                           "device": "cpu", "capacity": 2, "overhead_s": 0}, ...],
               "agreement": [.8, [.9, .85, .8]], "links_s": [.0001, .0001], "upstream_s": .05, "window": 32,
               "prefill_tokens": 512, "policy": {"mode": "adaptive", "num_draft_tokens": [4, 6], "patient": true}}]}

Stages from the lightest; stages that name the same device share it. agreement[k]: stage k with stage k + 1, one chance
or one per position. policy.mode: a recipe's, or `alone` (the target without drafters). What
is left out of a run has the default of `MeasuredRun`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cascade_runtime.config.recipe import POLICY_MODES
from cascade_runtime.errors import InputError
from cascade_runtime.scheduling.adaptive import Adaptive
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.policy import FreeRunning, LockStep, Policy, PreVerify
from cascade_runtime.simulation.simulator import Device, Link, Load, Result, Stage, simulate
from cascade_runtime.simulation.tokens import Agreement, Tokens

MODES = (*POLICY_MODES, "alone")
_MOST_BYTES = 1 << 24
_MOST_RUNS, _MOST_STAGES, _MOST_COUNT, _MOST_POSITIONS = 1024, 8, 1_000_000, 4096


@dataclass(frozen=True)
class MeasuredStage:
    """One stage as it ran: what its passes cost, and on which device. capacity: passes it runs at full speed."""

    name: str
    cost: StepCost
    device: str = ""
    capacity: float = 1.0
    overhead_s: float = 0.0


@dataclass(frozen=True)
class MeasuredPolicy:
    """num_draft_tokens[k]: the block of the edge from stage k to stage k + 1. patient: for throughput, not latency."""

    mode: str
    num_draft_tokens: tuple[int, ...] = ()
    patient: bool = True


@dataclass(frozen=True)
class MeasuredRun:
    """One run: the load, the stages, who agreed with whom, the policy, and the tokens per second it reached.
    warm_up: how many requests of the kind the policies had seen before it began.
    """

    streams: int
    tokens_per_s: float
    stages: tuple[MeasuredStage, ...]
    agreement: tuple[float | tuple[float, ...], ...]
    policy: MeasuredPolicy
    requests: int = 64
    tokens: int = 64
    prompt: int = 0
    links_s: tuple[float, ...] = ()
    upstream_s: float = 0.05
    window: int = 32
    prefill_tokens: int = 512
    warm_up: int = 0
    name: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a file."""
        return asdict(self)

    @staticmethod
    def from_dict(table: object, where: str = "run") -> MeasuredRun:
        """The inverse. Raises `InputError` that names the field, the value and what is allowed."""
        known = _table(table, where, MeasuredRun)
        stages = _list(known.get("stages"), f"{where}.stages", 1, _MOST_STAGES)
        known["stages"] = tuple(_stage(stage, f"{where}.stages[{k}]") for k, stage in enumerate(stages))
        edges = len(stages) - 1
        agreement = _list(known.get("agreement", []), f"{where}.agreement", edges, edges)
        known["agreement"] = tuple(_agreement(each, f"{where}.agreement[{k}]") for k, each in enumerate(agreement))
        known["policy"] = _policy(known.get("policy"), f"{where}.policy", edges)
        links = _list(known.get("links_s", []), f"{where}.links_s", 0, edges)
        if links and len(links) != edges:
            raise InputError(f"{where}.links_s", links, f"one for each of {edges} edges, or none")
        known["links_s"] = tuple(_number(each, f"{where}.links_s[{k}]", 0, 60) for k, each in enumerate(links))
        for key in ("streams", "requests", "tokens", "window", "prefill_tokens"):
            if key in known or key == "streams":
                known[key] = _count(known.get(key), f"{where}.{key}", 1)
        for key in ("prompt", "warm_up"):
            known[key] = _count(known.get(key, 0), f"{where}.{key}", 0)
        known["upstream_s"] = _number(known.get("upstream_s", 0.05), f"{where}.upstream_s", 0, 3600)
        known["tokens_per_s"] = _number(known.get("tokens_per_s"), f"{where}.tokens_per_s", 1e-9, 1e9)
        known["name"] = _name(known.get("name", ""), f"{where}.name")
        return MeasuredRun(**known)

    def policies(self) -> list[Policy]:
        """Fresh policies, as a recipe with these figures would build them."""
        blocks, last, built = self.policy.num_draft_tokens, len(self.stages) - 1, list[Policy]()
        for k, stage in enumerate(self.stages):
            takes = blocks[k - 1] if k and blocks else 0
            sends = blocks[k] if k < last and blocks else 1
            if self.policy.mode == "lock_step":
                built.append(LockStep(takes, sends))
            elif self.policy.mode == "free_running" and k:
                built.append(FreeRunning(self.window, sends))
            elif self.policy.mode == "pre_verify" and k:
                built.append(PreVerify(takes, self.window, sends))
            elif self.policy.mode == "adaptive" and k:
                patient = self.policy.patient
                built.append(
                    Adaptive(
                        stage.cost, most=self.window, first_wait=takes, sends=sends, can_relay=k > 1, patient=patient
                    )
                )
            else:
                built.append(Policy(takes, self.window, max(1, takes), sends))
        return built

    def simulated(self, tokens: Tokens | None = None) -> Result:
        """The same run in virtual time. tokens: who says what, instead of `agreement`."""
        devices = {stage.device: Device(stage.device, stage.capacity) for stage in self.stages if stage.device}
        stages = [
            Stage(stage.name, policy, stage.cost, devices.get(stage.device), stage.overhead_s)
            for stage, policy in zip(self.stages, self.policies(), strict=True)
        ]

        def run(requests: int) -> Result:
            return simulate(
                stages,
                tokens or Agreement(self.agreement),
                Load(self.streams, requests, self.tokens, self.prompt, self.policy.mode != "alone"),
                [Link(latency) for latency in self.links_s],
                upstream_s=self.upstream_s,
                window=self.window,
                prefill_tokens=self.prefill_tokens,
            )

        if self.warm_up:
            run(self.warm_up)  # the policies learn, and go on from there
        return run(self.requests)


def read_measured_runs(path: Path) -> list[MeasuredRun]:
    """The runs in a file. Raises `InputError` for anything that is not as above."""
    table = read_json(path, _MOST_BYTES)
    runs = _list(table.get("runs") if isinstance(table, Mapping) else None, "runs", 1, _MOST_RUNS)
    return [MeasuredRun.from_dict(run, f"runs[{k}]") for k, run in enumerate(runs)]


def read_json(path: Path, most_bytes: int) -> object:
    """A JSON file of at most so many bytes. Raises `InputError`."""
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(most_bytes + 1)
        if len(data) > most_bytes:
            raise InputError(str(path), f"over {most_bytes} bytes", f"at most {most_bytes} bytes")
        return json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(path), str(error), "a readable JSON file") from error


def _table(value: object, where: str, of: type[Any]) -> dict[str, Any]:
    allowed = [each.name for each in fields(of)]
    if not isinstance(value, Mapping):
        raise InputError(where, value, f"a table of {', '.join(allowed)}")
    unknown = [key for key in value if key not in allowed]
    if unknown:
        raise InputError(where, unknown[0], f"keys {', '.join(allowed)}")
    return dict(value)


def _list(value: object, where: str, least: int, most: int) -> Sequence[object]:
    if not isinstance(value, list | tuple) or not least <= len(value) <= most:
        raise InputError(where, value, f"a list of {least} to {most}")
    return value


def _number(value: object, where: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InputError(where, value, f"a number from {least:g} to {most:g}")
    return float(value)


def _count(value: object, where: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST_COUNT:
        raise InputError(where, value, f"a whole number from {least} to {_MOST_COUNT}")
    return value


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise InputError(where, value, "a text of at most 200 characters")
    return value


def _agreement(value: object, where: str) -> float | tuple[float, ...]:
    if isinstance(value, list | tuple):
        chances = _list(value, where, 1, _MOST_POSITIONS)
        return tuple(_number(chance, f"{where}[{k}]", 0, 1) for k, chance in enumerate(chances))
    return _number(value, where, 0, 1)


def _stage(value: object, where: str) -> MeasuredStage:
    known = _table(value, where, MeasuredStage)
    cost = _table(known.get("cost"), f"{where}.cost", StepCost)
    if "base" not in cost:
        raise InputError(f"{where}.cost", cost, "at least `base`, in seconds")
    costs = {key: _number(seconds, f"{where}.cost.{key}", 0, 3600) for key, seconds in cost.items()}
    return MeasuredStage(
        _name(known.get("name"), f"{where}.name"),
        StepCost(**costs),
        _name(known.get("device", ""), f"{where}.device"),
        _number(known.get("capacity", 1.0), f"{where}.capacity", 1e-3, 1e6),
        _number(known.get("overhead_s", 0.0), f"{where}.overhead_s", 0, 3600),
    )


def _policy(value: object, where: str, edges: int) -> MeasuredPolicy:
    known = _table(value, where, MeasuredPolicy)
    if known.get("mode") not in MODES:
        raise InputError(f"{where}.mode", known.get("mode"), ", ".join(MODES))
    blocks = _list(known.get("num_draft_tokens", []), f"{where}.num_draft_tokens", 0, edges)
    if len(blocks) != edges and known["mode"] != "alone":
        raise InputError(f"{where}.num_draft_tokens", blocks, f"one for each of {edges} edges")
    if not isinstance(known.get("patient", True), bool):
        raise InputError(f"{where}.patient", known["patient"], "true or false")
    counted = tuple(_count(each, f"{where}.num_draft_tokens[{k}]", 0) for k, each in enumerate(blocks))
    return MeasuredPolicy(known["mode"], counted, known.get("patient", True))
