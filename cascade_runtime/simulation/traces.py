"""Recordings of a cascade that a simulation runs on: token pairs, hazards per position, stage times.

    read_token_pairs(path)   {"results": [{"vl_tokens": [ids], "egpt_tokens": [ids]}, ...]}: what the target and a
                             drafter said, each on its own, to the same question
    read_hazards(path)       {"oneshot_prefill_hiding_500": {"L1+VL": {"hazard_accept_given_reached": [...],
                             "fit_verify_ms": ..., "fit_ar_ms_per_token": ..., "mean_drafted": ...}, ...}}: how often a
                             draft was accepted, by its position, given that all before it were
    read_stage_times(path)   {"by_clip": {"2s": {"eventgpt": {"prefill": {"mean": ms}, ...}, "videollava": {...}}}}

Files are hostile: sizes are checked first, and whatever is not as above raises `InputError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade_runtime.errors import InputError
from cascade_runtime.simulation.measured import read_json

_MOST_BYTES = 1 << 28
_MOST_ANSWERS, _MOST_TOKENS, _MOST_ID = 100_000, 8192, 1 << 24
_MOST_MS = 3.6e6


@dataclass(frozen=True)
class TokenPairs:
    """target[i], drafter[i]: token ids of answer i."""

    target: tuple[tuple[int, ...], ...]
    drafter: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class AdapterHazards:
    """accepted[k]: the chance that draft k is accepted, given that those before it were. Times in seconds: verify_s of
    one pass over `drafted` drafts, step_s of one token of the target.
    """

    accepted: tuple[float, ...]
    drafted: float
    verify_s: float
    step_s: float


@dataclass(frozen=True)
class StageTimes:
    """One model on clips of one length, mean seconds. input_s: loading, preprocessing and the vision tower."""

    input_s: float
    prefill_s: float
    step_s: float
    prompt: int


def read_token_pairs(path: Path) -> TokenPairs:
    """Pairs of answers. Raises `InputError`."""
    results = _get(read_json(path, _MOST_BYTES), "results", "file")
    if not isinstance(results, list) or not 2 <= len(results) <= _MOST_ANSWERS:
        raise InputError("results", type(results).__name__, f"a list of 2 to {_MOST_ANSWERS} answers")
    pairs = [
        tuple(_ids(_get(result, key, f"results[{i}]"), f"results[{i}].{key}") for key in ("vl_tokens", "egpt_tokens"))
        for i, result in enumerate(results)
    ]
    return TokenPairs(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


def read_hazards(path: Path) -> dict[str, AdapterHazards]:
    """By adapter. Raises `InputError`."""
    where = "oneshot_prefill_hiding_500"
    table = _get(read_json(path, _MOST_BYTES), where, "file")
    if not isinstance(table, Mapping) or not table:
        raise InputError(where, table, "a table of adapters")
    return {str(name): _adapter(each, f"{where}.{name}") for name, each in table.items()}


def _adapter(table: Any, where: str) -> AdapterHazards:
    chances = _get(table, "hazard_accept_given_reached", where)
    if not isinstance(chances, list) or not 1 <= len(chances) <= _MOST_TOKENS:
        raise InputError(f"{where}.hazard_accept_given_reached", chances, f"a list of 1 to {_MOST_TOKENS} chances")
    return AdapterHazards(
        tuple(_number(chance, f"{where}.hazard_accept_given_reached[{k}]", 1.0) for k, chance in enumerate(chances)),
        _number(_get(table, "mean_drafted", where), f"{where}.mean_drafted", _MOST_TOKENS),
        _number(_get(table, "fit_verify_ms", where), f"{where}.fit_verify_ms", _MOST_MS) / 1e3,
        _number(_get(table, "fit_ar_ms_per_token", where), f"{where}.fit_ar_ms_per_token", _MOST_MS) / 1e3,
    )


def read_stage_times(path: Path) -> dict[str, dict[str, StageTimes]]:
    """By clip length, then by model. Raises `InputError`."""
    clips = _get(read_json(path, _MOST_BYTES), "by_clip", "file")
    if not isinstance(clips, Mapping) or not clips:
        raise InputError("by_clip", clips, "a table of clip lengths")
    return {
        str(clip): {str(model): _times(table, f"by_clip.{clip}.{model}") for model, table in _items(models, clip)}
        for clip, models in clips.items()
    }


def _times(table: Any, where: str) -> StageTimes:
    def mean_s(stage: str) -> float:
        mean = _get(_get(table, stage, where), "mean", f"{where}.{stage}")
        return _number(mean, f"{where}.{stage}.mean", _MOST_MS) / 1e3

    prompt = _get(table, "prefill_len", where)
    return StageTimes(
        mean_s("load") + mean_s("preprocess") + mean_s("vision"),
        mean_s("prefill"),
        mean_s("decode_per_token"),
        int(_number(prompt, f"{where}.prefill_len", 1e6)),
    )


def _items(table: Any, where: object) -> list[tuple[object, object]]:
    if not isinstance(table, Mapping):
        raise InputError(f"by_clip.{where}", table, "a table of models")
    return list(table.items())


def _get(table: object, key: str, where: str) -> Any:
    if not isinstance(table, Mapping) or key not in table:
        raise InputError(f"{where}.{key}", None, "there")
    return table[key]


def _number(value: object, where: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise InputError(where, value, f"a number from 0 to {most:g}")
    return float(value)


def _ids(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= _MOST_TOKENS:
        raise InputError(where, value, f"a list of 1 to {_MOST_TOKENS} token ids")
    for token in value:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < _MOST_ID:
            raise InputError(where, token, f"token ids from 0 to {_MOST_ID - 1}")
    return tuple(value)
