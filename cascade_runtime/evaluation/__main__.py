"""`python -m cascade_runtime.evaluation`: the report on the bundled family, tables first, one JSON line last."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cascade_runtime.evaluation.report import evaluate_family, print_report


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a trained family.")
    parser.add_argument("--family", type=Path, help="family directory (default: the bundled one)")
    parser.add_argument("--recordings", type=Path, default=Path("../shared/data/events"), help="real recordings")
    parser.add_argument("--scenes", type=int, default=300, help="held-out simulated scenes")
    args = parser.parse_args()
    recordings = args.recordings if args.recordings.is_dir() else None
    report = evaluate_family(args.family, recordings=recordings, scenes=args.scenes, progress=print)
    print_report(report)
    print(json.dumps(report.to_dict()))


if __name__ == "__main__":
    main()
