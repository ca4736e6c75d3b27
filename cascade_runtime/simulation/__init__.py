"""A cascade on simulated devices: the schedulers and policies that run, with time and tokens that are made up."""

from cascade_runtime.simulation.measured import MeasuredRun, read_measured_runs
from cascade_runtime.simulation.simulator import Device, Link, Load, Result, Stage, simulate
from cascade_runtime.simulation.tokens import Agreement, Tokens

__all__ = [
    "Agreement",
    "Device",
    "Link",
    "Load",
    "MeasuredRun",
    "Result",
    "Stage",
    "Tokens",
    "read_measured_runs",
    "simulate",
]
