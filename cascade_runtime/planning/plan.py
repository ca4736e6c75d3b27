"""`Plan`: what `cascade plan` answers, as plain data. `to_dict` is JSON of schema 1; keys are added, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cascade_runtime.planning.forecast import Edge

SCHEMA = 1


@dataclass(frozen=True)
class StageOnDevice:
    """One stage on one device. turn: its place in the order where stages take turns, else None. piece, pieces, layers:
    where a stage is split, which part of it this is, of how many, with how many layers; the rest is this part's share.
    """

    stage: str
    dtype: str
    weight_bytes: int
    kv_bytes: int
    pass_ms: float
    busy: float
    load_s: float
    turn: int | None = None
    piece: int = 1
    pieces: int = 1
    layers: int | None = None

    @property
    def label(self) -> str:
        """Its name, and which part of it this is."""
        return self.stage if self.pieces == 1 else f"{self.stage} {self.piece}/{self.pieces}"


@dataclass(frozen=True)
class DevicePlan:
    """One device of every replica. shared: it comes with the cameras and serves all replicas. copies: how many like it
    a replica has; each of its stages is there as often, with its share of the requests.
    """

    pool: str
    kind: str
    site: str
    usable_bytes: int
    stages: tuple[StageOnDevice, ...]
    shared: bool = False
    copies: int = 1

    @property
    def used_bytes(self) -> int:
        """Weights and KV at a time."""
        each = [stage.weight_bytes + stage.kv_bytes for stage in self.stages]
        return max(each, default=0) if any(stage.turn is not None for stage in self.stages) else sum(each)


@dataclass(frozen=True)
class Replica:
    """`count` equal pipelines. slots: requests at a time of one; slots_that_fit: for which there would be memory.
    tokens_per_s of one as predicted; simulated_tokens_per_s: None where it was not simulated. overrides: for `--set`.
    drafts: where stages take turns, how many a drafter makes for each request.
    """

    count: int
    mode: str
    levels: tuple[str, ...]
    slots: int
    slots_that_fit: int
    devices: tuple[DevicePlan, ...]
    edges: tuple[Edge, ...]
    tokens_per_s: float
    simulated_tokens_per_s: float | None
    ttft_s: float
    simulated_ttft_s: float | None
    bottleneck: str
    overrides: tuple[str, ...]
    drafts: int = 0

    @property
    def splits(self) -> tuple[str, ...]:
        """In words: which stages are split."""
        found = ((d.kind, stage) for d in self.devices for stage in d.stages if stage.pieces > 1 and stage.piece == 1)
        return tuple(
            f"{stage.stage} is split by layers over {stage.pieces} {kind} of one node, which work one after the other: "
            "for memory, not speed"
            for kind, stage in found
        )


@dataclass(frozen=True)
class OneMore:
    """One more device of a pool: tokens per second of the whole then, and how many more."""

    pool: str
    kind: str
    tokens_per_s: float
    gain: float


@dataclass(frozen=True)
class Spare:
    """Devices that the plan has no use for."""

    pool: str
    kind: str
    site: str
    devices: int


@dataclass(frozen=True)
class Plan:
    """tokens_per_s: over all replicas, as simulated where it was, else as predicted. assumptions: what the runtime does
    not do today, empty where the plan can be run as it is. defaults: figures nobody gave.
    """

    recipe: str
    cluster: str
    tokens_per_s: float
    predicted_tokens_per_s: float
    tokens_per_s_alone: float
    ttft_s: float
    streams: int
    prompt: int
    answer_tokens: int
    replicas: tuple[Replica, ...]
    one_more: tuple[OneMore, ...]
    spare: tuple[Spare, ...]
    assumptions: tuple[str, ...]
    defaults: tuple[str, ...]

    @property
    def runs_today(self) -> bool:
        """Whether the runtime can do this, given the machines."""
        return not self.assumptions

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"schema": SCHEMA, **_plain(asdict(self)), "runs_today": self.runs_today}

    def text(self) -> str:
        """For people."""
        per_s = f"{self.tokens_per_s:.4g} tokens/s"
        lines = [f"{self.recipe} on {self.cluster}: {per_s}, first token after {_seconds(self.ttft_s)}"]
        if self.tokens_per_s_alone:
            ratio = self.tokens_per_s / self.tokens_per_s_alone
            lines.append(f"the target alone on the same devices: {self.tokens_per_s_alone:.4g} tokens/s ({ratio:.2f}x)")
        lines.append(
            f"{self.streams} requests at a time, {self.prompt} positions each, {self.answer_tokens} tokens to answer"
        )
        lines += [f"ASSUMES, and the runtime does not do today: {text}" for text in self.assumptions]
        for replica in self.replicas:
            lines += ["", *_replica_lines(replica)]
        if self.spare:
            lines += [
                "",
                "not used: " + ", ".join(f"{spare.devices} {spare.kind} of {spare.pool}" for spare in self.spare),
            ]
        lines += ["", "one more device, as predicted"]
        lines += [f"  {more.kind} in {more.pool}: {more.gain:+.4g} tokens/s" for more in self.one_more]
        lines += ["", *(f"taken for granted: {text}" for text in self.defaults)]
        return "\n".join(lines).rstrip()


def _replica_lines(replica: Replica) -> list[str]:
    said = f"predicted {replica.tokens_per_s:.4g} tokens/s"
    if replica.simulated_tokens_per_s is not None:
        said += f", simulated {replica.simulated_tokens_per_s:.4g}"
    fit = "" if replica.slots_that_fit == replica.slots else f" ({replica.slots_that_fit} would fit)"
    lines = [
        f"{replica.count} x {' -> '.join(replica.levels)}, {replica.mode}, {replica.slots} slots{fit}: {said} each"
    ]
    lines += [f"  {text}" for text in replica.splits]
    for device in replica.devices:
        share = device.used_bytes / device.usable_bytes
        shared = ", shared by all" if device.shared else ""
        memory = f"{byte_words(device.used_bytes)} of {byte_words(device.usable_bytes)} ({share:.0%})"
        several = f"{device.copies} x " if device.copies > 1 else ""
        lines.append(f"  {several}{device.kind} in {device.pool} ({device.site}){shared}: {memory}")
        for stage in device.stages:
            mark = " <- bottleneck" if stage.stage == replica.bottleneck else ""
            turn = f"turn {stage.turn + 1}, loads in {_seconds(stage.load_s)}, " if stage.turn is not None else ""
            kv = f" + {byte_words(stage.kv_bytes)} KV" if stage.kv_bytes else ""
            passes = f", {stage.pass_ms:.3g} ms a pass" if stage.pass_ms else ""
            layers = f"{stage.layers} layers, " if stage.layers else ""
            weight = f"{layers}{stage.dtype} {byte_words(stage.weight_bytes)}{kv}"
            lines.append(f"    {stage.label:<8} {turn}{weight}{passes}, busy {stage.busy:.0%}{mark}")
    for edge in replica.edges:
        away = f"{1000 * edge.latency_s:.3g} ms away"
        lines.append(f"  {edge.upstream}->{edge.downstream}: {edge_words(edge)}, {away}")
    if replica.overrides:
        lines.append("  " + " ".join(f"--set {text}" for text in replica.overrides))
    return lines


def edge_words(edge: Edge) -> str:
    """What was decided for an edge, and what it is expected to bring."""
    drafts = f"m {edge.min_drafts}, W {edge.window}, gamma {edge.drafts_per_pass:.3g}"
    return f"{drafts}, agreement {edge.agreement:.2g}, {edge.tokens_per_pass:.3g} tokens a pass"


def _plain(value: Any) -> Any:
    """Tuples as lists, floats to six digits: what JSON would make of them, and the same on every machine."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def byte_words(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
