"""An emulated recipe from recorded stage times and answers of two models, over recordings of 2 to 20 s.

    python -m benchmarks.recipes.stage_times --times TIMES.json --answers ANSWERS.json --out FOLDER [--gpus 1|2]

Writes FOLDER/stage_times.toml and FOLDER/answers.json.
TIMES.json: {"by_clip": {"2s": {"eventgpt": .., "videollava": ..}}}, each model with load, preprocess, vision, prefill
and decode_per_token as {"mean": ms}, and prefill_len in positions.
ANSWERS.json: {"results": [{"vl_tokens": [...], "egpt_tokens": [...]}]}.

light is eventgpt behind the event branch (load and preprocess render, vision encodes); heavy is videollava, whose load,
preprocess and vision are the dense branch, fitted as a line over the recording's length. What does not depend on the
length is the mean over all lengths. What more than one token costs heavy is a line through --verify-ms, a pass over
one token and --drafts of them, and its prefill; its step lies below that line (`several_ms`): 4-bit kernels for a
single token are quicker by far. With --gpus 1 light, heavy and the event branch take turns on one device.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

VERIFY_MS, DRAFTS = 69.2, 20.9  # as recorded beside the stage times, of four adapters on average
END = 2  # </s> of LLaMA's tokenizer, which both models use
RECIPE = """# Emulated, written by benchmarks/recipes/stage_times.py: no model runs.
[cascade]
name = "stage_times"
levels = ["light", "heavy"]
num_draft_tokens = [4]
slots = {slots}
max_len = {max_len}
prefill_tokens = {max_len}       # a prompt in one pass, as recorded

[stages.light]
device = "{models}"
num_cpus = 0.1
profile = {{ base_ms = {light[step]:.3f}, prefill_ms = {light[prefill]:.3f}, prompt_positions = {light[positions]} }}

[stages.heavy]
device = "{target}"
num_cpus = 0.1
profile = {{ base_ms = {heavy[step]:.3f}, per_token_ms = {heavy[token]:.4f}, several_ms = {heavy[several]:.3f}, \
prefill_ms = {heavy[prefill]:.3f}, prompt_positions = {heavy[positions]} }}

[encoder]
device = "{models}"
num_cpus = 0.1
profile = {{ render_ms = {light[render]:.3f}, encode_ms = {light[vision]:.3f} }}

[adapter]
device = "emulated"             # loading and preprocessing a video is work of the host
num_cpus = 0.1
profile = {{ dense_ms = {dense_ms:.3f}, dense_per_second_ms = {dense_per_second_ms:.3f} }}

[emulation]
drafters = "{drafters}"
answers = {answers}
"""


def fit_line(seconds: np.ndarray, ms: np.ndarray) -> tuple[float, float]:
    """Milliseconds at length 0 and per second, least squares, neither below zero."""
    slope, start = np.polyfit(seconds, ms, 1)
    if start < 0:
        return 0.0, float((seconds * ms).sum() / (seconds**2).sum())
    return float(start), max(0.0, float(slope))


def model_times(by_clip: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What does not depend on the recording's length, as the mean over all lengths. step: of a pass over one token."""

    def mean(*names: str) -> float:
        return float(np.mean([sum(clip[model][name]["mean"] for name in names) for clip in by_clip.values()]))

    return {
        "step": mean("decode_per_token"),
        "prefill": mean("prefill"),
        "render": mean("load", "preprocess"),
        "vision": mean("vision"),
        "positions": next(iter(by_clip.values()))[model]["prefill_len"],
    }


def with_verify(heavy: dict[str, Any], verify_ms: float, drafts: float) -> dict[str, Any]:
    """The line through a verification and the prefill, and how far a step lies below it."""
    per_token = max(0.0, (heavy["prefill"] - verify_ms) / (heavy["positions"] - 1 - drafts))
    step = heavy["step"] - per_token
    return {**heavy, "step": step, "token": per_token, "several": max(0.0, verify_ms - (1 + drafts) * per_token - step)}


def write_recipe(
    times: Path, answers: Path, out: Path, *, gpus: int, verify_ms: float, drafts: float, drafters: str
) -> Path:
    """Write both files; returns the recipe's path."""
    by_clip = json.loads(times.read_text())["by_clip"]
    seconds = np.array([float(name.removesuffix("s")) for name in by_clip])
    dense = [
        sum(clip["videollava"][name]["mean"] for name in ("load", "preprocess", "vision")) for clip in by_clip.values()
    ]
    dense_ms, dense_per_second_ms = fit_line(seconds, np.array(dense))
    light, heavy = (model_times(by_clip, model) for model in ("eventgpt", "videollava"))
    out.mkdir(parents=True, exist_ok=True)
    results = json.loads(answers.read_text())["results"]
    said = [{"heavy": each["vl_tokens"], "light": each["egpt_tokens"]} for each in results]
    (out / "answers.json").write_text(json.dumps({"end": END, "answers": said}))
    text = RECIPE.format(
        slots=16,
        max_len=heavy["positions"] + 256,
        models="emulated:gpu0",
        target="emulated:gpu0" if gpus == 1 else "emulated:gpu1",
        light=light,
        heavy=with_verify(heavy, verify_ms, drafts),
        dense_ms=dense_ms,
        dense_per_second_ms=dense_per_second_ms,
        drafters=drafters,
        answers=json.dumps(str((out / "answers.json").resolve())),
    )
    path = out / "stage_times.toml"
    path.write_text(text)
    return path


def main() -> None:
    """Write the recipe and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", type=int, choices=(1, 2), default=2, help="light and heavy share one device or not")
    parser.add_argument("--verify-ms", type=float, default=VERIFY_MS, help="heavy's pass over --drafts and one token")
    parser.add_argument("--drafts", type=float, default=DRAFTS)
    parser.add_argument("--drafters", choices=("ngram", "recorded"), default="ngram")
    args = parser.parse_args()
    path = write_recipe(
        args.times,
        args.answers,
        args.out,
        gpus=args.gpus,
        verify_ms=args.verify_ms,
        drafts=args.drafts,
        drafters=args.drafters,
    )
    print(path)


if __name__ == "__main__":
    main()
