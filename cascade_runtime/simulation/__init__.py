"""A cascade on simulated devices: the schedulers and policies that run, with time and tokens that are made up."""

from cascade_runtime.simulation.simulator import Device, Link, Load, Result, Stage, simulate
from cascade_runtime.simulation.tokens import Agreement, Tokens

__all__ = ["Agreement", "Device", "Link", "Load", "Result", "Stage", "Tokens", "simulate"]
