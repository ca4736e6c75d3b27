"""`EdgeDrafter`: the recipe's lightest stage on an edge box, and its link to the next one, which is at the core.

    packer --admit--> Drafter (actors/) --local channel--> newest blocks --due--> EdgeLink
                                        <-----------------  verdicts  <---hear--

It is the stage that a pipeline would run: it drafts within its window, ahead of a core that may not even have the
frames yet. Rows are bounded by the recipe's slots: for a window that finds none nobody drafts. Needs torch.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from actors.drafter import Drafter
from cascade_runtime.channels import ChannelSpec, connect
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.edge.drafter import DrafterFacts
from cascade_runtime.edge.feature_packing import FeaturePacker
from cascade_runtime.edge.ingest import Window
from cascade_runtime.edge.newest import MAX_FRAME_BYTES, Newest, read_messages
from cascade_runtime.errors import CascadeError, ChannelClosed, ChannelError, DeadlineExceeded, InputError
from cascade_runtime.messages import DraftBlock, Verdict, decode, encode
from cascade_runtime.proto import edge_pb2
from cascade_runtime.vision.adapter_verifier import counted
from cascade_runtime.vision.features import VisualFeatures

log = logging.getLogger(__name__)

_LINK_S = 10.0
_LISTEN_S = 0.5
_CONTROL_S = 2.0  # a stage that takes longer to take a row in holds up the windows: it is asked no more


@dataclass
class DrafterCounts:
    """drafted_windows: that the box drafts for. undrafted_windows: that found no slot, or no drafter. refused_verdicts:
    frames and verdicts from the core that came to nothing.
    """

    drafted_windows: int = 0
    undrafted_windows: int = 0
    refused_verdicts: int = 0


class EdgeDrafter:
    """Level 0 of a recipe with `drafter = "edge"`. `wake` is called, in any thread, when there is something to tell.

    Raises `ConfigError` for a checkpoint that cannot be loaded.
    """

    def __init__(self, recipe: Recipe) -> None:
        light = replace(recipe.stages[0], drafter="model")
        deadlines = replace(recipe.deadlines, control_s=min(_CONTROL_S, recipe.deadlines.control_s))
        self.stage = Drafter(replace(recipe, stages=(light, *recipe.stages[1:]), deadlines=deadlines))
        self.counts, self.blocks = DrafterCounts(), Newest()
        self.wake: Callable[[], None] = lambda: None
        self._last: dict[int, int] = {}  # window -> the number of its last batch
        self._hangs = False
        spec = ChannelSpec(backend="local", link=self.stage.name, max_frame_bytes=MAX_FRAME_BYTES)
        spec = self.stage.listen(spec)
        self._hands = ThreadPoolExecutor(1, thread_name_prefix="edge-drafter")  # for what the stage need not answer now
        linked = self._hands.submit(self.stage.link, (), _LINK_S)
        self._channel = connect(spec, _LINK_S)
        linked.result(_LINK_S)
        threading.Thread(target=self._listen, name="edge-drafts", daemon=True).start()

    @property
    def facts(self) -> DrafterFacts:
        """What the core must agree to."""
        level = self.stage.level
        ends, space = tuple(level.ends), level.space
        return DrafterFacts(tokenizer=level.tokenizer_tag(), vocab_size=level.vocab_size, ends=ends, space=space)

    def admit(self, window: int, question: str, features: VisualFeatures, sampling: SamplingParams) -> bool:
        """Draft for a window; whether it could be taken in."""
        admitted = False
        if not self._hangs:
            self.blocks.open(window)
            try:
                self.stage.admit(window, f"window-{window}", question, features, sampling)
                admitted = True
            except CascadeError as error:
                log.info("window %d has no drafter: %s", window, error)
                self._hangs = isinstance(error, DeadlineExceeded)
                self.release(window)
        self.counts.drafted_windows += admitted
        self.counts.undrafted_windows += not admitted
        return admitted

    def numbered(self, window: int, last: int) -> None:
        """A window's last batch has this number: until that was sent, nothing is told about the window."""
        self._last[window] = last

    def release(self, window: int) -> None:
        """A window has its outcome, or never began."""
        self.blocks.close(window)
        self._last.pop(window, None)
        self._hands.submit(self._release, window)

    def due(self, sent: int) -> bytes:
        """A frame of what was drafted and not told, of windows whose batches were sent."""
        return self.blocks.due(lambda window: self._last.get(window, sent + 1) <= sent)

    def hear(self, frame: bytes) -> None:
        """What the core stands by. A verdict that finds no room is healed by the next."""
        try:
            for verdict in read_messages(frame, Verdict):
                if verdict.request in self._last:
                    self._channel.send(encode(verdict), 0.0)
                else:
                    self.counts.refused_verdicts += 1
        except (ChannelError, DeadlineExceeded, InputError):
            self.counts.refused_verdicts += 1

    def close(self) -> None:
        """Stop the stage."""
        self.stage.stop()
        self._hands.shutdown(wait=False, cancel_futures=True)

    def _release(self, window: int) -> None:
        with contextlib.suppress(CascadeError):
            self.stage.release(window)

    def _listen(self) -> None:
        """Until the stage ends, whichever way: windows then have no drafter."""
        try:
            while True:
                frame = self._channel.recv(_LISTEN_S)
                for message in decode(frame) if frame is not None else ():
                    if isinstance(message, DraftBlock) and self.blocks.put(message.request, message):
                        self.wake()
        except ChannelClosed:
            log.info("the drafter has ended")


class DraftingPacker:
    """The cut "drafts": what the cut "features" packs, while the drafter begins on the same features."""

    def __init__(self, packer: FeaturePacker, drafter: EdgeDrafter, question: str, sampling: SamplingParams) -> None:
        self._packer, self._drafter = packer, drafter
        self._question, self._sampling = question, sampling
        model: Any = drafter.stage.level.model
        self._pixels = model.pixels  # of a tower that is the target's

    def pack(self, window: Window) -> edge_pb2.WindowPart:
        """Frames, features and aligned features, and whether they are drafted for."""
        part, view, aligned = self._packer.see(window)
        features = counted(aligned, view, self._pixels)
        part.drafts = self._drafter.admit(window.number, self._question, features, self._sampling)
        return part
