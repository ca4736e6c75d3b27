"""`Standing`: what one stage stands by for one request. The protocol between stages as a pure state machine.

    upstream (lighter)                    this stage                       downstream (heavier)
      DraftBlock  --on_drafts-->   hints beyond the prefix   --drafts()-->   DraftBlock
      Verdict     <--verdict()--   the prefix it stands by   <--on_verdict--  Verdict

The shell around it (an actor's loop, a simulator) asks `work()` what to extend, runs the model, hands the choices to
`settle`, and sends whatever `drafts()` and `verdict()` return. It never decides anything about tokens itself.

The prefix grows by the stage's own choices (`settle`) and is overruled only by its downstream neighbour
(`on_verdict`). The last stage has no downstream, so its prefix depends on its model alone: that is why no drafter, no
loss, no delay and no repetition can change an answer. No clock, no I/O, no model, no Ray in here.

Hints may branch (`branching.py`). A stage that drafts trees stands by nothing but what downstream told it: it plants
one on its prefix (`plant`), proposes it, and waits for a verdict that says more. A tree that comes late hangs where the
prefix was: what of it still lies ahead is found by walking along what the prefix has become.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from cascade_runtime.messages import UNLIMITED, DraftBlock, Grant, Verdict
from cascade_runtime.scheduling import branching
from cascade_runtime.scheduling.work import Grown, Settled, Work

_OUTSTANDING = 1024  # verdicts remembered while unacknowledged; older ones only make the next verdict longer


@dataclass
class Standing:
    """One request at one stage.

    epoch: of both links at first; a message of another is refused. stage: index from the lightest, 0. limit: the
    answer's max_tokens. window: how far the prefix may run ahead of what downstream confirmed (None for the last
    stage). vocab_size bounds tokens from outside; `ends` are end-of-sequence ids. slot: how many tokens the stage's KV
    slot holds of this answer, drafts that branch among them.
    """

    request: int
    epoch: int
    stage: int
    limit: int
    vocab_size: int
    ends: frozenset[int]
    window: int | None
    slot: int = 2**31
    prefix: list[int] = field(default_factory=list)
    stages: list[int] = field(default_factory=list)
    hints: list[int] = field(default_factory=list)
    hint_stages: list[int] = field(default_factory=list)
    hint_parents: list[int] | None = None  # None: a chain
    planted: Grown | None = None  # on this prefix, and not decided yet
    confirmed: int = 0
    finished: bool = False
    upstream_waits: bool = False  # upstream said its block is all it will send until the next verdict
    grant: Grant = UNLIMITED  # what downstream lets this stage do
    hesitates: bool = False  # it does not trust its own drafts any further, until downstream has spoken
    cost_us: tuple[int, int] = (0, 0)  # pace and work of a token of upstream's, as it said

    def __post_init__(self) -> None:
        self._seq = 0  # of the last verdict sent upstream
        self._correcting_seq = 0  # of the last one that contradicted upstream
        self._known = 0  # upstream certainly stands by prefix[:known]
        self._outstanding: deque[tuple[int, int]] = deque(maxlen=_OUTSTANDING)  # (seq, prefix length it told)
        self._taken_seq = 0  # of the last verdict taken from downstream
        self._sent = 0  # downstream was sent prefix[:sent]
        self._sent_blocked = False  # and told that no more can follow
        self._version = 0  # rises whenever the prefix changes
        self._told: tuple[int, bool, Grant] | None = None
        self._heard: tuple[object, ...] | None = None  # the last block since the last verdict
        self._up_epoch = self._down_epoch = self.epoch  # of the links to both sides

    # -- what to run -------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more tokens this stage may stand by now."""
        end = self.limit
        if self.window is not None:
            granted = self.grant.window
            end = min(end, self.confirmed + (granted if granted < self.window else self.window))
        return end - len(self.prefix)

    @property
    def left(self) -> int:
        """Tokens that the answer may still grow by."""
        return self.limit - len(self.prefix)

    @property
    def blocked(self) -> bool:
        """Nothing to gain from a pass: finished, hesitating, its tree is not decided yet, out of room, or it stands by
        an end of sequence.
        """
        ended = bool(self.prefix and self.prefix[-1] in self.ends)
        return self.finished or self.hesitates or self.planted is not None or self.room <= 0 or ended

    def work(self, most: int) -> Work:
        """The next pass over at most `most` hints. Call only when not `blocked`."""
        most, prefix = min(most, self.slot - len(self.prefix)), tuple(self.prefix)
        if self.hint_parents is not None:
            nodes = branching.shallow(self.hint_parents, self.room - 1, most)
            masks = tuple(self.hint_stages[node] for node in nodes)
            parents = tuple(branching.among(self.hint_parents, nodes))
            return Work(prefix, tuple(self.hints[node] for node in nodes), masks, parents)
        most = min(most, self.room - 1)
        return Work(prefix, tuple(self.hints[:most]), tuple(self.hint_stages[:most]))

    def plant(self, tree: Grown) -> None:
        """Propose a tree beyond the prefix, until downstream says more."""
        self.planted, self._sent_blocked = tree, False

    def settle(self, work: Work, choices: Sequence[int]) -> Settled | None:
        """Take the model's choices for `work`: keep the run of hints that equals them, add the model's own next token.

        Returns None, changing nothing, when the prefix was overruled while the pass ran.
        """
        if tuple(self.prefix) != work.prefix:
            return None
        if work.parents is not None:
            return self._settle_tree(work, work.parents, choices)
        accepted = 0
        while accepted < len(work.drafts) and work.drafts[accepted] == choices[accepted]:
            accepted += 1
            if work.drafts[accepted - 1] in self.ends:
                break
        mine, kept = 1 << self.stage, list(work.drafts[:accepted])
        masks = [mask | mine for mask in self.hint_stages[:accepted]]
        ended = bool(kept and kept[-1] in self.ends)
        if not ended:
            kept.append(choices[accepted])
            beyond = self.hints[accepted : accepted + 1]
            masks.append(mine | (self.hint_stages[accepted] if beyond == [choices[accepted]] else 0))
        contradicts = self.hints[: len(kept)] != kept[: len(self.hints)]
        self.prefix += kept
        self.stages += masks
        self._version += 1
        if contradicts:
            self._keep_hints([], [])
            self._correcting_seq = self._seq + 1
        else:
            self._keep_hints(self.hints[len(kept) :], self.hint_stages[len(kept) :])
        self.upstream_waits = False  # the verdict on this pass lets it go on
        return Settled(len(work.drafts), accepted, tuple(kept))

    def _settle_tree(self, work: Work, parents: tuple[int, ...], choices: Sequence[int]) -> Settled:
        """The path that equals the choices, and the model's own next token. Upstream stands by no more than it was
        told, so nothing here contradicts it.
        """
        path = branching.follow(work.drafts, parents, choices)
        ended = next((i for i, node in enumerate(path, start=1) if work.drafts[node] in self.ends), None)
        path, mine = path[:ended], 1 << self.stage
        kept, masks = [work.drafts[node] for node in path], [work.masks[node] | mine for node in path]
        if ended is None:
            kept.append(choices[path[-1] + 1 if path else 0])
            masks.append(mine)
        self.prefix += kept
        self.stages += masks
        self._version += 1
        self._keep_hints([], [])
        self.upstream_waits = False
        return Settled(work.depth, len(path), tuple(kept))

    def relay(self) -> int:
        """Stand by upstream's hints without looking at them, as far as there is room: of those that branch, by the path
        of first children. Returns how many.

        They keep their masks: this stage did not accept them. Downstream has the last word on them as on all others.
        """
        if self.hint_parents is not None:
            path = branching.first_path(self.hint_parents)
            self._keep_hints([self.hints[node] for node in path], [self.hint_stages[node] for node in path])
        taken = max(0, min(len(self.hints), self.room))
        end = next((i + 1 for i, token in enumerate(self.hints[:taken]) if token in self.ends), taken)
        if self.blocked or not end:
            return 0
        self.prefix += self.hints[:end]
        self.stages += self.hint_stages[:end]
        self._version += 1
        self._keep_hints(self.hints[end:], self.hint_stages[end:])
        self.upstream_waits = False
        return end

    def drop_hints(self) -> None:
        """Forget what upstream proposed: it cannot be looked at."""
        self._keep_hints([], [])

    def finish(self, length: int) -> None:
        """The answer ends at `length` tokens (last stage only)."""
        del self.prefix[length:], self.stages[length:]
        self._keep_hints([], [])
        self.finished = True
        self._version += 1

    # -- from and to upstream ----------------------------------------------------------------------------------------

    def on_drafts(self, block: DraftBlock) -> bool:
        """Take a block of hints. Returns whether it was of use; a useless one leaves everything as it was."""
        if block.request != self.request or block.epoch != self._up_epoch or self.finished:
            return False
        self._acknowledge(block.ack)
        self.cost_us = block.pace_us, block.work_us
        said = block.ack, block.base, block.tokens, block.parents
        if said == self._heard and block.ack < self._seq:
            self._told = None  # twice since the last verdict, and without it: that was lost
        self._heard = said
        if block.ack < self._correcting_seq or block.base > len(self.prefix):
            return False  # drafted on a prefix that has been corrected since
        if block.parents is not None:
            return self._on_tree(block, block.parents)
        overlap = len(self.prefix) - block.base
        if list(block.tokens[:overlap]) != self.prefix[block.base : block.base + len(block.tokens)]:
            return False
        hints, masks = list(block.tokens[overlap:]), list(block.stages[overlap:])
        bad = next((i for i, token in enumerate(hints) if token >= self.vocab_size), len(hints))
        hints, masks = hints[:bad], masks[:bad]
        self.upstream_waits = self._is_all(block)
        if len(hints) <= len(self.hints) and self.hints[: len(hints)] == hints and self.hint_parents is None:
            return bool(hints) and len(hints) == len(self.hints)  # an older block, or the same again
        self._keep_hints(hints, self._below(masks))
        return True

    def _on_tree(self, block: DraftBlock, parents: tuple[int, ...]) -> bool:
        """Take what hangs beyond the prefix of a tree that was grown on `block.base` tokens of it."""
        path = self.prefix[block.base :]
        if branching.walk(block.tokens, parents, path) is None or any(each >= self.vocab_size for each in block.tokens):
            return False
        self.upstream_waits = self._is_all(block)
        return self._keep_beyond(path, block.tokens, self._below(block.stages), parents)

    def _is_all(self, block: DraftBlock) -> bool:
        """Whether upstream will send no more until the next verdict."""
        known = self._told[0] if self._told is not None else 0
        return block.finished and block.ack == self._seq and known == self._version

    def _below(self, masks: Sequence[int]) -> list[int]:
        """Of the stages that are said to stand by hints, those that can."""
        lighter = (1 << self.stage) - 1
        return [(mask & lighter) or 1 for mask in masks]

    def verdict(self, grant: Grant = UNLIMITED) -> Verdict | None:
        """What upstream should be told, or None when it was told already.

        An upstream that may not draft is told that, and the end; what lies between it learns when it may again.
        """
        told = self._told
        if told is not None and not self.finished and grant == told[2]:
            if not grant.window or (self._version == told[0] and self._correcting_seq <= self._seq):
                return None
        elif told == (self._version, self.finished, grant):
            return None
        return self.repeat_verdict(grant)

    def repeat_verdict(self, grant: Grant = UNLIMITED) -> Verdict:
        """The verdict again under a new number: heals a lost one when nothing else would be sent."""
        self._told, self._heard = (self._version, self.finished, grant), None
        base = self._known
        self._seq += 1
        self._outstanding.append((self._seq, len(self.prefix)))
        tokens, masks = tuple(self.prefix[base:]), tuple(self.stages[base:])
        return Verdict(self.request, self._up_epoch, self._seq, base, tokens, masks, self.finished, grant)

    def renew_upstream(self, epoch: int) -> None:
        """Another link leads upstream, perhaps to another process: what was said on the old one counts no more, and the
        next verdict says everything.
        """
        self._up_epoch, self._known, self._correcting_seq = epoch, 0, 0
        self._outstanding.clear()
        self._told, self._heard, self.upstream_waits = None, None, False

    def renew_downstream(self, epoch: int) -> None:
        """Another link leads downstream: nothing is confirmed there until its first verdict, which may be a short
        one; the next block says everything.
        """
        self._down_epoch, self._taken_seq, self.confirmed = epoch, 0, 0
        self._sent, self._sent_blocked, self.hesitates = 0, False, False

    def _acknowledge(self, seq: int) -> None:
        while self._outstanding and self._outstanding[0][0] <= seq:
            told, length = self._outstanding.popleft()
            if told == seq:
                self._known = length

    # -- from and to downstream --------------------------------------------------------------------------------------

    def drafts(self, least: int = 1, cost_us: tuple[int, int] = (0, 0)) -> DraftBlock | None:
        """The unconfirmed part of the prefix, once at least `least` tokens of it are news or no more can follow.
        cost_us: a token's pace and work, see `DraftBlock`.
        """
        if self.window is None or self.finished:
            return None
        news = len(self.prefix) - self._sent
        if (news >= least) or (self.blocked and (news or not self._sent_blocked)):
            return self.repeat_drafts(cost_us)
        return None

    def repeat_drafts(self, cost_us: tuple[int, int] = (0, 0)) -> DraftBlock:
        """The current block, whether or not it was sent before: heals a lost one."""
        blocked = self.blocked
        self._sent, self._sent_blocked = len(self.prefix), blocked
        if (tree := self.planted) is not None:
            masks, seq = (1 << self.stage,) * len(tree.tokens), self._taken_seq
            base, told = len(self.prefix), (self.request, self._down_epoch)
            return DraftBlock(*told, base, tree.tokens, masks, seq, True, *cost_us, parents=tree.parents)
        tokens, masks = tuple(self.prefix[self.confirmed :]), tuple(self.stages[self.confirmed :])
        sent = self._down_epoch, self.confirmed, tokens, masks, self._taken_seq
        return DraftBlock(self.request, *sent, blocked, *cost_us)

    def on_verdict(self, verdict: Verdict) -> bool:
        """Stand by what downstream stands by. Returns whether the prefix was corrected.

        Verdicts are ordered by number: an older one is ignored, a shorter one is not.
        """
        if verdict.request != self.request or verdict.epoch != self._down_epoch or verdict.seq <= self._taken_seq:
            return False
        tokens, end = list(verdict.tokens), verdict.base + len(verdict.tokens)
        if verdict.base > len(self.prefix) or end > self.limit or any(token >= self.vocab_size for token in tokens):
            return False
        self._taken_seq = verdict.seq
        self.grant, self.hesitates = verdict.grant, False
        agree = 0
        for mine, theirs in zip(self.prefix[verdict.base :], tokens, strict=False):
            if mine != theirs:
                break
            agree += 1
        at = verdict.base + agree
        corrected = agree < len(tokens) and at < len(self.prefix)
        if agree < len(tokens):
            self._adopt(at, tokens[agree:], list(verdict.stages[agree:]), corrected)
        elif self.planted is not None:
            self._sent_blocked = False  # the same tree once more, for this verdict
        self.stages[verdict.base : end] = verdict.stages
        self.confirmed = end
        if verdict.finished:
            del self.prefix[end:], self.stages[end:]
            self._keep_hints([], [])
            self.finished = True
            self._version += 1
        return corrected

    def _adopt(self, at: int, tokens: list[int], masks: list[int], corrected: bool) -> None:
        """Replace everything from `at` on."""
        self.planted = None
        goes_on = not corrected and self._outgrow(tokens)
        self.prefix[at:] = tokens
        self.stages[at:] = masks
        self._version += 1
        self._sent, self._sent_blocked = len(self.prefix), False  # downstream said these itself
        if goes_on:
            return
        self._keep_hints([], [])
        self.upstream_waits = False
        self._known = min(self._known, at)
        self._outstanding = deque(((seq, min(length, at)) for seq, length in self._outstanding), _OUTSTANDING)
        self._correcting_seq = self._seq + 1

    # -- hints -------------------------------------------------------------------------------------------------------

    def _outgrow(self, tokens: list[int]) -> bool:
        """The prefix grows by what downstream says: keep the hints beyond. False where upstream stands by others."""
        if self.hint_parents is not None:
            self._keep_beyond(tokens, self.hints, self.hint_stages, self.hint_parents)
            self.upstream_waits = False  # it grows another tree now
            return True
        if self.hints[: len(tokens)] != tokens[: len(self.hints)]:
            return False
        self._keep_hints(self.hints[len(tokens) :], self.hint_stages[len(tokens) :])
        return True

    def _keep_beyond(
        self, path: Sequence[int], tokens: Sequence[int], masks: Sequence[int], parents: Sequence[int]
    ) -> bool:
        """Keep what of a tree hangs on this path. Returns whether there is anything."""
        root = branching.walk(tokens, parents, path)
        nodes = [] if root is None else branching.below(parents, root)
        self._keep_hints([tokens[node] for node in nodes], [masks[node] for node in nodes])
        self.hint_parents = branching.among(parents, nodes) if nodes else None
        return bool(nodes)

    def _keep_hints(self, hints: list[int], masks: list[int]) -> None:
        self.hints, self.hint_stages, self.hint_parents = hints, masks, None
