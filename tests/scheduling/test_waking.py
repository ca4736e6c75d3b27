"""When a stage wakes: for what is due, and not at once for what its policy has just held back."""

from __future__ import annotations

from cascade_runtime.scheduling.policy import LockStep
from cascade_runtime.scheduling.stage_scheduler import StageScheduler
from cascade_runtime.scheduling.standing import Standing


def admitted(scheduler, request, now):
    standing = Standing(request=request, epoch=0, stage=1, limit=9, vocab_size=99, ends=frozenset(), window=None)
    row = scheduler.admit(standing, now)
    row.passes = 1
    return row


def test_a_stage_whose_policy_waits_for_other_rows_sleeps_until_they_are_due():
    scheduler = StageScheduler(1, 2, LockStep(4), upstream_s=0.05)
    admitted(scheduler, 1, now=0.0)
    admitted(scheduler, 2, now=0.04)
    assert scheduler.next_batch(0.06) == []  # the first is late, the second is worth waiting for
    assert scheduler.wake_at(0.06, idle_s=0.5) == 0.04 + 0.05
    assert len(scheduler.next_batch(0.095)) == 2
