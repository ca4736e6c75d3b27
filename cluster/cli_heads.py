"""`cascade train heads`: a drafting head beside the bundled heavy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

KINDS = ("medusa", "eagle", "eagle3", "hivis", "msd", "vispec", "dream", "exits")


def add_heads(what: Any) -> None:
    """Add `heads` to what `cascade train` can train."""
    heads = what.add_parser("heads", help="a head that drafts from the hidden states of the bundled heavy")
    heads.add_argument("--kind", choices=KINDS, required=True)
    heads.add_argument("--out", type=Path, default=Path("runs/heads"), metavar="DIR", help="default: %(default)s")
    heads.add_argument("--quick", action="store_true", help="two minutes: proves the path, teaches little")
    heads.add_argument("--scenes", type=_count, metavar="N", help="how many scenes heavy is asked about")
    heads.set_defaults(run=_train_heads)


def _train_heads(args: argparse.Namespace) -> int:
    from cascade_runtime.training.heads import train_heads

    print(train_heads(args.kind, args.out, quick=args.quick, scenes=args.scenes))
    return 0


def _count(text: str) -> int:
    value = int(text)
    if value < 4:
        raise argparse.ArgumentTypeError(f"{value}: 4 or more")
    return value
