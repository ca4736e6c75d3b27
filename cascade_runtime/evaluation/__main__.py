"""`python -m cascade_runtime.evaluation`: the report on the bundled family, tables first, one JSON line last."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cascade_runtime.errors import InputError
from cascade_runtime.evaluation.report import evaluate_family, print_report

BESIDE_THE_CHECKOUT = Path("../shared/data/events")


def main() -> None:
    """Evaluate and print; progress on stderr."""
    parser = argparse.ArgumentParser(description="Evaluate a trained family.")
    parser.add_argument("--family", type=Path, help="family directory (default: the bundled one)")
    parser.add_argument(
        "--recordings", type=Path, help=f"folder of real recordings (default: {BESIDE_THE_CHECKOUT} where it exists)"
    )
    parser.add_argument("--scenes", type=int, default=300, help="held-out simulated scenes (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="which held-out scenes; no two seeds share one")
    args = parser.parse_args()
    recordings = args.recordings or (BESIDE_THE_CHECKOUT if BESIDE_THE_CHECKOUT.is_dir() else None)
    try:
        if recordings is not None and not recordings.is_dir():
            raise InputError("recordings", str(recordings), "a folder")
        report = evaluate_family(
            args.family,
            recordings=recordings,
            scenes=args.scenes,
            seed=args.seed,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except InputError as error:
        parser.error(str(error))
    print_report(report)
    print(json.dumps(report.to_dict()))


if __name__ == "__main__":
    main()
