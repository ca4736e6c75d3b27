"""Systems with a published rule: one process each (`one_process.py`), or as actors (`schedules.py`)."""
