"""Video question answering over files: every row once, across kills, with accuracy.

question    one row, checked               records, layouts    files -> rows
windows     rows in groups that share a recording, read by `recordings` from below one folder
outcome     one row of the output, scored by `scoring` and, all together, by `cider`
shards      what is committed, written by `durable`; `output` composes it, `report` sums it up
config      what is asked of a batch       manifest            what its answers depend on
job         the run itself, over a transport, a `window_run` at a time
"""

from cascade_runtime.batch.config import BatchConfig
from cascade_runtime.batch.job import begin, run_batch
from cascade_runtime.batch.layouts import LAYOUTS
from cascade_runtime.batch.report import Report

__all__ = ["LAYOUTS", "BatchConfig", "Report", "begin", "run_batch"]
