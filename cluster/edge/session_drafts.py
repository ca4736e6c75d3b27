"""`SessionDrafts`: what one edge drafts for its windows, and what the core stands by of them.

    edge -- frame --> looked at --> window waits: the newest is kept  --> window runs: on to the exchange
    edge <-- frame -- the newest verdict of each window that runs     <-- exchange

An edge speaks of windows by their numbers, and of its own only: no other request has a name here. What it says of a
window that has not come, has ended, or was said not to be drafted for, is refused and counted, as is what is no frame
of draft blocks. Whatever it says, the answers stay the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cascade_runtime.edge.newest import Newest, read_messages
from cascade_runtime.errors import ChannelError, InputError
from cascade_runtime.messages import DraftBlock, Verdict
from cluster.edge.exchange import DraftExchange


@dataclass
class DraftCounts:
    """blocks: that went on to the pipeline. refused: messages that came to nothing. drafted, accepted: tokens, as in
    outcomes.
    """

    blocks: int = 0
    refused: int = 0
    drafted: int = 0
    accepted: int = 0


class SessionDrafts:
    """Of one session. Used within one event loop. `verdicts` is what the edge is to be told."""

    def __init__(self, exchange: DraftExchange) -> None:
        self.verdicts, self.counts = Newest(), DraftCounts()
        self._exchange = exchange
        self._waiting: dict[int, DraftBlock | None] = {}  # whole windows, and the newest that was drafted for each
        self._running: dict[int, str] = {}  # and their requests

    def expect(self, window: int) -> None:
        """A window that the edge drafts for is here, and waits. One whose number another still has is not known."""
        if window in self._waiting or window in self._running:
            self.counts.refused += 1
            return
        self._waiting[window] = None

    def begin(self, window: int, request_id: str, news: Callable[[], None]) -> None:
        """It runs now. news: called when there is a verdict that the edge is to be told."""
        if window not in self._waiting:
            return
        block = self._waiting.pop(window)
        self.verdicts.open(window)
        self._running[window] = request_id

        def tell(verdict: Verdict) -> None:
            if self.verdicts.put(window, verdict):
                news()

        self._exchange.open(request_id, tell)
        if block is not None:
            self._offer(window, block)

    def end(self, window: int) -> None:
        """It has its outcome."""
        self._waiting.pop(window, None)
        self.verdicts.close(window)
        request_id = self._running.pop(window, None)
        if request_id is not None:
            self._exchange.close(request_id)

    def hear(self, frame: bytes) -> None:
        """The edge has drafted."""
        try:
            blocks = read_messages(frame, DraftBlock)
        except (ChannelError, InputError):
            self.counts.refused += 1
            return
        for block in blocks:
            if block.request in self._running:
                self._offer(block.request, block)
            elif block.request in self._waiting:
                self._waiting[block.request] = block
            else:
                self.counts.refused += 1

    def close(self) -> None:
        """The session ends."""
        for window in list(self._running):
            self.end(window)

    def _offer(self, window: int, block: DraftBlock) -> None:
        self.counts.blocks += 1
        self._exchange.offer(self._running[window], block)
