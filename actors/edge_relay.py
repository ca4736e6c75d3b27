"""`EdgeRelay`: stands where the lightest stage would, for a drafter that runs on edge boxes (`drafter = "edge"`).

    edge server  --drafted-->   newest block of each request    --DraftBlock-->  downstream
                 <--verdicts--  newest verdict of each request  <---Verdict---

    consumes    blocks from whoever speaks for the boxes, verdicts from downstream, commands from the controller
    produces    the same blocks under the pipeline's own numbers; verdicts for whoever asks
    waits for   any of them

It has no model, and control methods like any language stage. What a box says is a hint: decoded again, bounded, and of
a request that is here or still to come, else refused and counted. Of each request only the newest message is kept,
since each says all. A request that is told of no edge is never admitted here, and nobody waits for its drafts.

When downstream is started anew, it numbers its verdicts from 1 again, which no box knows: the requests that were inside
go on without their boxes. A relay that was started anew is told of them, and goes on passing blocks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.host import process
from actors.links import epochs_of
from actors.rows import STRAIGHT, Route, RowReport
from actors.stage_loop import StageLoop
from cascade_runtime.channels import ChannelSpec, wait_any
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.decoding.level import tokenizer_tag
from cascade_runtime.errors import ChannelClosed, ChannelError
from cascade_runtime.messages import DraftBlock, decode, encode
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.models.stage_source import load_front
from cascade_runtime.scheduling.policy import Policy
from cascade_runtime.vision.features import VisualFeatures

log = logging.getLogger(__name__)

EARLY_BLOCKS = 64  # kept of requests that are not admitted yet, and as many verdicts
_MESSAGES = 256
_IDLE_S = 0.5


@dataclass(frozen=True)
class _Relayed:
    """One request inside. since_ns: when it was admitted, monotonic."""

    request_id: str
    since_ns: int


class EdgeRelay(StageLoop[_Relayed]):
    """Level 0 of a recipe whose drafter runs on edge boxes."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, 0)
        front = load_front(recipe.stages[0])
        self._tokenizer, self._ends = tokenizer_tag(front.tokenizer), front.ends
        self._handles: dict[str, int] = {}
        self._early: OrderedDict[str, DraftBlock] = OrderedDict()
        self._ahead: OrderedDict[int, bytes] = OrderedDict()  # verdicts that overtook the admission
        self._had_link = False
        self._slowest_us = round(1e6 * recipe.deadlines.upstream_s)
        self._changed = threading.Condition()  # guards what follows
        self._heard: OrderedDict[str, DraftBlock] = OrderedDict()
        self._told: dict[str, bytes] = {}
        self._refused = self._passed_on = 0

    # -- for whoever speaks for the boxes ----------------------------------------------------------------------------

    def drafted(self, blocks: Sequence[tuple[str, bytes]]) -> None:
        """Newer blocks: (request id, frame of one `DraftBlock`). Raises `StageDied`."""
        self._check_running()
        for request_id, frame in blocks[:_MESSAGES]:
            try:
                (block,) = decode(frame)
                usable = isinstance(block, DraftBlock) and block.parents is None
            except (ChannelError, ValueError):
                block, usable = None, False
            with self._changed:
                if not usable or not isinstance(block, DraftBlock):
                    self._refused += 1
                    continue
                self._heard[request_id] = block
                self._heard.move_to_end(request_id)
                self._refused += _bound(self._heard, EARLY_BLOCKS + self.recipe.cascade.slots)
        self._bell.ring()

    def verdicts(self, timeout_s: float) -> list[tuple[str, bytes]]:
        """What downstream has said since the last call, the newest of each request, as soon as there is anything:
        (request id, frame of one `Verdict`). Raises `StageDied`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._told or self._stopping.is_set(), timeout_s)
            self._check_running()
            told, self._told = self._told, {}
        return list(told.items())

    # -- control plane, as of any language stage ---------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """Facts about the stage that the launcher checks and prints."""
        facts = {"name": self.name, "tokenizer": self._tokenizer, "ends": self._ends, **process("cpu")}
        return {**facts, "weight_bytes": 0, "kv_bytes": 0, "device": "edge boxes", "threads": 1}

    def link(self, upstream: Sequence[ChannelSpec], timeout_s: float) -> None:
        """Accept the next stage, where it was told of one, and start the loop. Raises `DeadlineExceeded`."""
        if self._thread is not None:
            return
        if self.links.awaited:
            self.links.downstream[0], self._had_link = self.links.accept(timeout_s), True
        self._start()

    def join_downstream(self, timeout_s: float, replica: int = 0) -> None:
        """Link to the next stage anew, which comes to the address that `listen` gave."""
        link = self.links.accept(timeout_s, replica)

        def renew() -> None:
            if self._had_link:
                self._forget_all()  # what this downstream stands by cannot be known to the boxes
            self.links.drop(self.links.downstream.get(replica))
            self.links.downstream[replica], self._had_link = link, True

        self._command(renew)

    def admit(
        self,
        handle: int,
        request_id: str,
        question: str,
        features: VisualFeatures,
        sampling: SamplingParams,
        expect_drafts: bool = True,
        tokens: tuple[int, ...] = (),
        masks: tuple[int, ...] = (),
        route: Route = STRAIGHT,
    ) -> None:
        """Pass on what a box drafts for this request, see `LanguageStage.admit`; its box has all but the number."""
        self._command(lambda: self._admit(handle, request_id))

    def revise(self, handle: int, features: VisualFeatures | None) -> None:
        """Other features: the box keeps those it has."""

    def stats(self) -> dict[str, Any]:
        """Counters since the start, under the names of any language stage: passes are blocks that were passed on."""
        with self._changed:
            refused, passed_on = self._refused, self._passed_on
        return {
            "name": self.name,
            "emulated": False,
            "passes": passed_on,
            "tokens_fed": 0,
            "busy_s": 0.0,
            "awake_s": self.clock.awake_ns / 1e9,
            "active_rows": len(self.rows),
            "free_slots": self.recipe.cascade.slots - len(self.rows),
            "slots": self.recipe.cascade.slots,
            "early_blocks": len(self._early),
            "silences": 0,
            "refused_messages": refused + self.links.refused,
            "edge": EdgeCounters(self.name).to_dict(),
            "decision": Policy(0).decision.to_dict(),
            "upstream_alive": False,
            "downstream_alive": bool(self.links.downstream),
        }

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self.clock.turn()
        self._commands.obey()
        self._take()
        self._pass_on()
        self.clock.rest()
        wait_any([self._bell.ear, *(each.channel for each in self.links)], _IDLE_S)
        self._bell.hush()

    def _ended(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _take(self) -> None:
        """Verdicts, for whoever asks."""
        downstream, epoch = self.links.downstream.get(0), epochs_of(self.links.downstream).get(0)
        if downstream is None:
            return
        newest: dict[str, bytes] = {}
        strange = 0
        try:
            for message in downstream.take(_MESSAGES):
                row = self.rows.get(message.request)
                if message.epoch != epoch or (row is None and self._is_past(message.request)):
                    strange += 1
                elif row is not None:
                    newest[row.request_id] = encode(message)
                else:
                    self._ahead[message.request] = encode(message)
        except ChannelClosed:
            log.warning("stage %s: %s closed its link", self.name, downstream.name)
            self.links.drop(downstream)
        strange += _bound(self._ahead, EARLY_BLOCKS)
        with self._changed:
            self._refused += strange
            if newest:
                self._told |= newest
                self._changed.notify_all()

    def _pass_on(self) -> None:
        """Blocks of requests that are here; others are kept for a while."""
        with self._changed:
            heard, self._heard = self._heard, OrderedDict[str, DraftBlock]()
        told = 0
        for request_id, block in heard.items():
            if request_id in self._handles:
                told += self._tell(self._handles[request_id], block)
            else:
                self._early[request_id] = block
                self._early.move_to_end(request_id)
        strange = _bound(self._early, EARLY_BLOCKS)
        for neighbour in self.links.flush():
            log.warning("stage %s: %s closed its link", self.name, neighbour.name)
            self.links.drop(neighbour)
        with self._changed:
            self._passed_on += told
            self._refused += strange

    def _tell(self, handle: int, block: DraftBlock) -> bool:
        """Under the pipeline's number and the link's epoch. A box's cores are nobody else's, and a pace beyond the
        deadline is the deadline: nobody waits longer.
        """
        downstream = self.links.downstream.get(0)
        if downstream is None:
            return False
        epoch, pace_us = downstream.channel.spec.epoch, min(block.pace_us, self._slowest_us)
        stages = (1,) * len(block.tokens)
        downstream.tell(replace(block, request=handle, epoch=epoch, stages=stages, pace_us=pace_us, work_us=0))
        return True

    # -- requests ----------------------------------------------------------------------------------------------------

    def _admit(self, handle: int, request_id: str) -> None:
        self._expect(handle, request_id)
        if handle in self.rows:
            return
        self.rows[handle] = _Relayed(request_id, time.monotonic_ns())
        self._handles[request_id] = handle
        early, ahead = self._early.pop(request_id, None), self._ahead.pop(handle, None)
        with self._changed:
            if early is not None:
                self._heard.setdefault(request_id, early)
            if ahead is not None:
                self._told[request_id] = ahead
                self._changed.notify_all()

    def _forget(self, handle: int) -> RowReport | None:
        row = self.rows.pop(handle, None)
        if row is None:
            return None
        del self._handles[row.request_id]
        with self._changed:
            self._told.pop(row.request_id, None)
        return RowReport(EdgeCounters(self.name), self.tracer.of(handle, row.since_ns), 0)

    def _forget_all(self) -> None:
        for handle in list(self.rows):
            self._forget(handle)
        self._early.clear()
        self._ahead.clear()


def _bound(kept: OrderedDict[Any, Any], most: int) -> int:
    """Forget the oldest beyond so many; how many those were."""
    over = max(0, len(kept) - most)
    for _ in range(over):
        kept.popitem(last=False)
    return over
