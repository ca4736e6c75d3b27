"""`Manifest`: what a run's answers depend on, kept beside its output as NAME.manifest.json.

    {"format": 1, "complete": false, "configuration": {"input": ..., "recipe": ..., "models": ..., ...}, "report": null}

A run goes on only under the configuration it began with: answers of two setups do not belong in one file. Where stages
run and how many questions are asked at once is no part of it, since the answers are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cascade_runtime.batch.durable import storage_errors, write_durably
from cascade_runtime.config import Recipe
from cascade_runtime.errors import ConfigError

_FORMAT = 1
_PACKAGES = ("cascade-runtime", "torch", "transformers", "tokenizers", "numpy")
_BLOCK = 1 << 20
_WHOLE_BYTES = 256 << 20  # a larger checkpoint file is hashed at _SAMPLES places and by its size
_SAMPLES = 64
_SHOWN = 4


@dataclass
class Manifest:
    """configuration: plain data that must be equal for a run to go on. report: the figures of a complete run."""

    configuration: Mapping[str, Any]
    complete: bool = False
    report: Mapping[str, Any] | None = None
    format: int = field(default=_FORMAT)

    @classmethod
    def load(cls, path: Path) -> Manifest | None:
        """The manifest in a file, None where there is none. Raises `ConfigError` for a file that is not one."""
        with storage_errors(path):
            text = path.read_bytes() if path.exists() else None
        if text is None:
            return None
        try:
            read = json.loads(text)
            if read["format"] != _FORMAT or not isinstance(read["configuration"], dict):
                raise ValueError(f"format {read['format']!r}")
            return cls(read["configuration"], bool(read["complete"]), read["report"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError("resume", str(path), f"a manifest of this version ({error}); or --no-resume") from error

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"
        write_durably(path, lambda file: file.write(text.encode()))

    def check_same(self, configuration: Mapping[str, Any]) -> None:
        """Raises `ConfigError` naming what differs from the configuration this run began with."""
        before, now = dict(_flat(self.configuration)), dict(_flat(configuration))
        names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if names:
            differ = {name: (before.get(name, "not there"), now.get(name, "not there")) for name in names[:_SHOWN]}
            raise ConfigError(
                "resume",
                f"{len(names)} that differ from when it began: "
                + ", ".join(f"{name} was {was}, is {now}" for name, (was, now) in differ.items()),
                "the same configuration; or --no-resume, which begins anew",
            )


def configuration(
    *, files: Sequence[Path], recipe: Recipe, asked: Mapping[str, Any], checkpoints: Mapping[str, str]
) -> dict[str, Any]:
    """What a run's answers depend on, as plain JSON data.

    files: the input and its companions. asked: the request's own settings. checkpoints: stage -> directory.
    """
    told = {
        "files": {path.name: _file_hash(path) for path in files},
        "recipe": asdict(replace(recipe, cascade=replace(recipe.cascade, keep_features_mb=0))),  # changes no answer
        "asked": dict(asked),
        "models": {stage: _folder_hash(Path(folder)) for stage, folder in checkpoints.items()},
        "versions": {name: _version(name) for name in _PACKAGES},
    }
    return json.loads(json.dumps(told))


def _file_hash(path: Path) -> str:
    """SHA-256 of a whole file."""
    digest = hashlib.sha256()
    with storage_errors(path), path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _folder_hash(folder: Path) -> str:
    """SHA-256 over a checkpoint's files: names, sizes and contents; of a file above 256 MiB 64 blocks of 1 MiB, evenly
    spread, first and last included. Tells checkpoints apart; it is no proof against one made to collide.
    """
    digest = hashlib.sha256()
    with storage_errors(folder):
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                for start in _places(size):
                    file.seek(start)
                    digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _places(size: int) -> Iterator[int]:
    if size <= _WHOLE_BYTES:
        yield from range(0, size, _BLOCK)
    else:
        yield from ((size - _BLOCK) * number // (_SAMPLES - 1) for number in range(_SAMPLES))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every plain value of nested tables and lists under its dotted name, as JSON; empty ones too."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{number}")
    else:
        yield name, json.dumps(value)
