"""Checkpoint directories that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cascade_runtime.models.family import save_model


def write_model(model: Any, tokenizer: Tokenizer, directory: Path) -> None:
    """Save a checkpoint beside `directory` and rename it; what stood there before is replaced."""
    partial = directory.with_name(f"{directory.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_model(model, tokenizer, partial)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)
