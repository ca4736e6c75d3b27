"""`cascade train distil`: teach a drafter what its verifier says, and tell what that brought."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

METHODS = ("distillspec", "adaspec", "speckd", "cascade_aware", "layerwise", "massv", "hard")
LOSSES = ("fkl", "rkl", "jsd", "tvd")


def add_distil(train: Any) -> None:
    """The parser of `distil`, among the others of `train`."""
    distil = train.add_parser("distil", help="a drafter, so that more of its tokens are accepted")
    distil.add_argument("--student", default="light", metavar="NAME|DIR", help="who learns; a bundled model or yours")
    distil.add_argument("--teacher", default="heavy", metavar="NAME|DIR", help="the target; tokenizer and tower shared")
    distil.add_argument("--method", choices=METHODS, default="distillspec")
    distil.add_argument("--loss", choices=LOSSES, default="fkl", help="the divergence; massv and hard have none")
    distil.add_argument("--out", type=Path, metavar="DIR", help="default: distil/STUDENT-METHOD-LOSS")
    distil.add_argument("--lessons", type=Path, metavar="DIR", help="keep the teacher's answers here, for several runs")
    distil.add_argument("--reference", type=Path, metavar="DIR", help="adaspec: a student distilled before")
    distil.add_argument("--scenes", type=int, default=400, metavar="N")
    distil.add_argument("--steps", type=int, default=200, metavar="N")
    distil.add_argument("--seed", type=int, default=7, metavar="N")
    distil.add_argument("--fresh", action="store_true", help="begin with random weights, tower excepted")
    distil.add_argument("--quick", action="store_true", help="a minute: proves the path, teaches little")
    distil.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the recipe")
    distil.set_defaults(run=_distil)


def _distil(args: argparse.Namespace) -> int:
    from cascade_runtime.evaluation.acceptance import before_and_after
    from cascade_runtime.training.distil.config import DistilConfig
    from cascade_runtime.training.distil.run import Pairing, distil

    scenes, steps = (min(args.scenes, 24), min(args.steps, 24)) if args.quick else (args.scenes, args.steps)
    config = DistilConfig(
        method=args.method, loss=args.loss, scenes=scenes, steps=steps, seed=args.seed, fresh=args.fresh
    )
    pairing = Pairing(args.student, args.teacher, tuple(args.set), args.lessons, args.reference)
    out = args.out or Path("distil") / f"{Path(args.student).name}-{args.method}-{args.loss}"
    made = distil(pairing, config, out)
    for line in before_and_after(pairing, made, scenes=8 if args.quick else 24):
        print(line)
    print(made)
    return 0
