"""`begin` and `run_batch`: every row of a file answered once, whatever stops the run and however often.

    input -> windows of rows -> WindowRun -> shards -> output, composed in the order of the input

Rows are read as they are asked, and a window is finished before the next one is read: nothing grows with the input but
one byte a row. A row that cannot be asked is an error row. A row on which the cascade fails twice is one too, but the
next run asks it again; a cascade that fails on one row after the other ends the run.
"""

from __future__ import annotations

from collections.abc import Mapping

from cascade_runtime.batch.config import BatchConfig
from cascade_runtime.batch.layouts import read_rows
from cascade_runtime.batch.manifest import Manifest
from cascade_runtime.batch.output import compose
from cascade_runtime.batch.progress import Progress
from cascade_runtime.batch.recordings import Recordings
from cascade_runtime.batch.report import Report, report
from cascade_runtime.batch.shards import Shards
from cascade_runtime.batch.window_run import WindowRun
from cascade_runtime.batch.windows import windows
from cascade_runtime.config import Recipe
from cascade_runtime.errors import ConfigError, InputError
from cascade_runtime.transports import Transport


def begin(config: BatchConfig, recipe: Recipe, checkpoints: Mapping[str, str]) -> Report | None:
    """Make ready, or go on: check that the configuration is the one the run began with, and write it down.

    checkpoints: stage -> the directory it loads, of stages that load one. Returns the report where the output is
    complete already. Raises `ConfigError` where it cannot go on, `InputError` for an input that is not there.
    """
    if not config.input.is_file():
        raise InputError("input", str(config.input), "an existing file")
    told = config.describe(recipe, checkpoints)
    manifest = Manifest.load(config.manifest_path) if config.resume else None
    if manifest is not None:
        manifest.check_same(told)
        if manifest.complete and config.output.exists():
            _forget_shards(config)
            return Report.from_dict(manifest.report or {})
    elif config.resume and (config.output.exists() or config.parts.exists()):
        raise ConfigError("output", str(config.output), "a new file, or --no-resume to replace this one")
    else:
        _forget_shards(config)
    Manifest(told).save(config.manifest_path)
    return None


def _forget_shards(config: BatchConfig) -> None:
    if config.parts.exists():
        Shards(config.parts).remove()


async def run_batch(config: BatchConfig, transport: Transport) -> Report:
    """Answer what is left of a batch that `begin` has made ready, and compose its output.

    Raises `CapacityError` when the disk is full, `StageError` when the cascade fails on `MAX_FAILURES` rows in turn;
    what was committed by then is kept, and so it is when this is cancelled or the process killed.
    """
    rows = sum(1 for _ in read_rows(config.input, config.layout))
    shards = Shards(config.parts)
    progress = Progress(rows, shards.count, hidden=config.hidden)
    try:
        recordings = Recordings(config.root or config.input.parent)
        for window in windows(read_rows(config.input, config.layout), config.window_rows):
            await WindowRun(config, transport, shards, progress, recordings, window).run()
        compose(config.output, shards.in_order(), rows)
        told = report(shards.in_order())
        if not told.failed:
            manifest = Manifest.load(config.manifest_path)
            assert manifest is not None  # `begin` wrote it
            Manifest(manifest.configuration, True, told.to_dict()).save(config.manifest_path)
            shards.remove()
        return told
    finally:
        progress.close()
        shards.close()
