"""`cascade nodes`: what a running Ray cluster offers, as a table, as JSON, and as a cluster file for `cascade plan`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade_runtime.errors import CascadeError
from cluster.output_file import write_output

if TYPE_CHECKING:
    from cluster.nodes import RayNode, Survey

LIVE = "live"


def add_nodes(commands: Any) -> None:
    """The parser of `nodes`."""
    nodes = commands.add_parser("nodes", help="what a running Ray cluster offers: devices, memory, speeds, links")
    nodes.add_argument("--address", default="auto", help="of the Ray cluster; RAY_ADDRESS, or the one of this machine")
    nodes.add_argument("--timeout", type=float, default=15.0, metavar="S", help="for a probe to answer")
    nodes.add_argument("--no-probe", action="store_true", help="only what Ray and the data sheets say")
    nodes.add_argument("-o", "--output", type=Path, metavar="FILE.toml", help="the cluster file")
    nodes.add_argument("--json", action="store_true")
    nodes.set_defaults(run=_nodes)


def live_survey(address: str, timeout_s: float, *, probe: bool = True) -> Survey:
    """Survey the Ray at an address, "auto": that of RAY_ADDRESS or of this machine. Raises `CascadeError`."""
    import logging

    import ray
    from ray.exceptions import RayError

    from cluster.nodes import survey

    if ray.is_initialized():
        return survey(timeout_s, probe=probe)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        hint = "is it running, and is RAY_AUTH_MODE=token exported where it asks for a token?"
        raise CascadeError(f"no Ray cluster at {address}: {error}; {hint}") from error
    try:
        return survey(timeout_s, probe=probe)
    finally:
        ray.shutdown()


def _nodes(args: argparse.Namespace) -> int:
    from cascade_runtime.planning import to_toml

    found = live_survey(args.address, args.timeout, probe=not args.no_probe)
    if args.output:
        write_output(args.output, to_toml(found.table))
    print(json.dumps(found.to_dict()) if args.json else _text(found))
    return 0


def _text(found: Survey) -> str:
    heads = ("node", "site", "cores", "GPUs", "memory", "GFLOPS", "GB/s", "labels")
    rows = [heads, *(_row(found, node) for node in found.nodes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for (one, other), speed in found.links.items():
        lines.append(f"{one} <-> {other}: {speed.latency_ms:.3g} ms, {speed.mbit_s:.4g} Mbit/s")
    for pool in found.table["pools"]:
        each = f", {pool['devices_per_node']} to a node" if "devices_per_node" in pool else ""
        lines.append(f"pool {pool['name']}: {pool['devices']} x {pool['kind']} ({pool['site']}){each}")
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _row(found: Survey, node: RayNode) -> tuple[str, ...]:
    speed = found.steps.get(node.node_id)
    gpus = f"{node.gpus:g} {speed.device if speed and speed.memory_bytes else node.accelerator}" if node.gpus else "-"
    memory = speed.memory_bytes if speed and speed.memory_bytes else node.memory_bytes
    rates = (f"{speed.flops['float32'] / 1e9:.3g}", f"{speed.bytes_per_s / 1e9:.3g}") if speed else ("-", "-")
    labels = ",".join(f"{key}={value}" for key, value in node.own_labels.items())
    here = f"{node.address} {node.node_id[:6]}"
    return (here, node.site, f"{node.cpus:g}", gpus.strip(), f"{memory / 1e9:.3g} GB", *rates, labels or "-")
