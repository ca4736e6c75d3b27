"""`cascade dashboards -o DIR`: a Grafana dashboard and a Prometheus scrape configuration for what a cascade counts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_dashboards(commands: Any) -> None:
    """Add the command to the parsers of `cascade`."""
    dashboards = commands.add_parser("dashboards", help="a Grafana dashboard and a Prometheus scrape configuration")
    dashboards.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    dashboards.set_defaults(run=_dashboards)


def _dashboards(args: argparse.Namespace) -> int:
    from cluster.dashboards import write_dashboards

    for path in write_dashboards(args.output):
        print(path)
    return 0
