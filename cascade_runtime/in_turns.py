"""The cascade on one device that holds one model at a time: its stages take turns, each loaded once for many requests.

    load encoder, view all | load towers and adapter, see all | load light, draft for all | .. | load heavy, answer all

    recipe: cascade.loading = "in_turns", cascade.window = tokens that each level drafts for a request in its turn

A drafter's turn goes over what the level before it drafted, keeps the run that equals its own choices, and goes on
alone for the rest of the window; the target does the same until the answer ends. So the answer is the target's own,
token for token, as everywhere. What a turn leaves behind are tokens and features; its weights and KV slots are given
back before the next is loaded: at most one model is there at any time (the turn of the towers holds the adapter, too).
Weights are read again from the checkpoint, which the system keeps in memory where it has room.

The more requests come together, up to `cascade.slots`, the less each pays for loading. One that comes alone pays all.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch

from cascade_runtime.api import Answer, GenerateRequest, Piece, Timings
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.decoding.choice import NOT_FINITE
from cascade_runtime.decoding.level import Level, check_one_vocabulary
from cascade_runtime.decoding.row import Extension, Row
from cascade_runtime.decoding.stopping import Stopper
from cascade_runtime.emulation.loading import load_branch, load_level, load_verifier
from cascade_runtime.errors import CascadeError, StageError
from cascade_runtime.events import Events
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.models.stage_source import load_front
from cascade_runtime.vision.event_branch import EventView
from cascade_runtime.vision.front_end import FrontEnd, Seen, Span

Loaded = TypeVar("Loaded")
Tokens = list[tuple[int, int]]  # (token id, mask of the stages that stand by it)
Update = Answer | CascadeError | Piece


@dataclass(eq=False)
class _Asked:
    """One request on its way through the turns. said: of the level whose turn it is; drafts: of the one before."""

    index: int
    request: GenerateRequest
    stopper: Stopper
    edges: list[EdgeCounters]
    seen: Seen | None = None
    view: EventView | None = None
    row: Row | None = None
    drafts: Tokens = field(default_factory=list)
    said: Tokens = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    passes: int = 0
    shown: int = 0
    first_token_ms: float = 0.0
    failed: CascadeError | None = None

    @property
    def ahead(self) -> Tokens:
        """Drafts that still follow what was said; none once it was something else."""
        told = [token for token, _ in self.said]
        return self.drafts[len(told) :] if [token for token, _ in self.drafts[: len(told)]] == told else []


class InTurns:
    """A recipe whose stages take turns on one device. Nothing stays loaded between batches."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        front = load_front(recipe.target)
        self._tokenizer, self._ends = front.tokenizer, front.ends
        self._spans: list[Span] = []
        self._started = 0.0

    def stopper(self, sampling: SamplingParams) -> Stopper:
        """What ends an answer of the target, and turns its tokens into text."""
        return Stopper(self._tokenizer, self._ends, sampling)

    def run(self, requests: Sequence[GenerateRequest], concurrency: int | None = None) -> Iterator[tuple[int, Update]]:
        """As `Engine.run`: all requests, in batches of as many as there are slots or `concurrency` says."""
        slots = self.recipe.cascade.slots
        most = slots if concurrency is None else min(concurrency, slots)
        names = self.recipe.cascade.levels
        for first in range(0, len(requests), most):
            asked = []
            for index, request in enumerate(requests[first : first + most], first):
                edges = [EdgeCounters(f"{light}-{heavy}") for light, heavy in itertools.pairwise(names)]
                asked.append(_Asked(index, request, self.stopper(request.sampling), edges))
            yield from self._batch(asked)

    def _batch(self, asked: list[_Asked]) -> Iterator[tuple[int, Update]]:
        self._started, self._spans = time.perf_counter(), []
        self._see(asked)
        tags: dict[str, str] = {}
        for k, name in enumerate(self.recipe.cascade.levels):
            last = k == len(self.recipe.stages) - 1
            level = self._load(name, lambda k=k: load_level(self.recipe, k))
            try:
                tags[name] = level.tokenizer_tag()
                check_one_vocabulary(tags)
                going = [one for one in asked if one.failed is None and self._admit(level, k, one, last)]
                began = self._ms()
                yield from self._answer(level, k, going) if last else self._draft(level, k, going)
                self._spans.append((name, "verify" if k else "draft", began, self._ms()))
            finally:
                del level
                for one in asked:
                    one.row = None  # its prompt lies where the weights lay
                _give_back()
        for one in asked:
            yield one.index, one.failed or self._done(one)

    # -- the turns -------------------------------------------------------------------------------------------------

    def _see(self, asked: list[_Asked]) -> None:
        """The turns of the encoder, and of the adapter with the towers."""
        branch = self._load("encoder", lambda: load_branch(self.recipe))
        encodes, strict = branch.encoder is not None, self.recipe.cascade.mode == "strict"
        for one in asked:
            with _Failing(one):
                events = cast(Events, one.request.events)
                one.view = branch.view(events, encodes and (one.request.speculate or not strict))
        del branch
        _give_back()
        verifier = self._load("adapter", lambda: load_verifier(self.recipe))
        for one in asked:
            if one.view is not None:
                with _Failing(one):
                    seen = FrontEnd(self.recipe, cast(Any, _Viewed(one.view, encodes)), verifier)
                    one.seen = seen.see(cast(Events, one.request.events), speculate=one.request.speculate)
                    one.notes += one.seen.notes
        del verifier
        _give_back()

    def _admit(self, level: Level, k: int, one: _Asked, last: bool) -> bool:
        """Whether a level takes part in a request. A drafter that cannot is a note, the target's refusal the end."""
        assert one.seen is not None
        one.row, one.drafts, one.said = None, one.said or one.drafts, []
        features = one.seen.for_target if last else one.seen.features[k]
        if features is None:
            return False
        try:
            one.row = level.admit(one.request.question, features, one.request.sampling)
        except CascadeError as error:
            if last:
                one.failed = error
            else:
                one.notes.append(f"without {level.name}: {error}")
        one.prompt_tokens = len(one.row.prompt) if one.row else 0
        return one.row is not None

    def _draft(self, level: Level, k: int, going: list[_Asked]) -> Iterator[tuple[int, Update]]:
        """A drafter's turn: as far as the window goes, or to the end of the answer."""
        while going:
            self._pass(level, k, going)
            going = [one for one in going if one.row is not None and self._goes_on(one, self.recipe.cascade.window)]
        yield from ()

    def _answer(self, level: Level, k: int, going: list[_Asked]) -> Iterator[tuple[int, Update]]:
        """The target's turn: to the end of every answer."""
        while going:
            before = {one.index: len(one.said) for one in going}
            self._pass(level, k, going)
            left = []
            for one in going:
                one.passes += 1
                if one.row is None:
                    one.failed = StageError(level.name, one.request.request_id, "logits are not finite")
                    continue
                stopper = one.stopper
                length, reason = stopper.cut([token for token, _ in one.said], before[one.index])
                del one.said[length:]
                one.first_token_ms = one.first_token_ms or self._ms()
                tokens, masks = zip(*one.said, strict=True) if one.said else ((), ())
                text = stopper.text(tokens) if reason else stopper.shown(tokens)
                new = slice(before[one.index], None)
                yield one.index, Piece(text[one.shown :], list(tokens[new]), list(masks[new]))
                one.shown = max(one.shown, len(text))
                if reason is None:
                    left.append(one)
            going = left

    def _pass(self, level: Level, k: int, going: list[_Asked]) -> None:
        """One pass over what is drafted for each: the run that equals the level's own choices, and its next one."""
        ahead = [one.ahead[: max(0, one.request.sampling.max_tokens - len(one.said) - 1)] for one in going]
        prefixes = [[token for token, _ in one.said] for one in going]
        rows = [cast(Row, one.row) for one in going]
        asked = [
            Extension(row, prefix, [token for token, _ in drafts])
            for row, prefix, drafts in zip(rows, prefixes, ahead, strict=True)
        ]
        choices = level.decoder.extend(asked)
        for one, row, prefix, drafts, chosen in zip(going, rows, prefixes, ahead, choices, strict=True):
            if NOT_FINITE in chosen and drafts:  # one draft may have spoilt the pass: ask without any
                drafts, (chosen,) = [], level.decoder.extend([Extension(row, prefix)])
                one.drafts = []
            if NOT_FINITE in chosen:
                one.row = None
                continue
            run = next((i for i, (token, _) in enumerate(drafts) if token != chosen[i]), len(drafts))
            kept = [(token, mask | 1 << k) for token, mask in drafts[:run]]
            ended = bool(kept) and one.stopper.is_end(kept[-1][0])
            if k:
                one.edges[k - 1].observe(len(drafts), run, bonus=0 if ended else 1)
            one.said += kept if ended else [*kept, (chosen[run], 1 << k)]

    def _goes_on(self, one: _Asked, most: int) -> bool:
        most = min(most, one.request.sampling.max_tokens)
        return len(one.said) < most and not one.stopper.is_end(one.said[-1][0])

    # -- what the turns share ----------------------------------------------------------------------------------------

    def _load(self, name: str, load: Callable[[], Loaded]) -> Loaded:
        began = self._ms()
        loaded = load()
        self._spans.append((name, "load", began, self._ms()))
        return loaded

    def _ms(self) -> float:
        return 1000 * (time.perf_counter() - self._started)

    def _done(self, one: _Asked) -> Answer:
        assert one.seen is not None
        tokens, masks = zip(*one.said, strict=True) if one.said else ((), ())
        stopper = one.stopper
        return Answer(
            request_id=one.request.request_id,
            text=stopper.text(tokens),
            token_ids=tokens,
            pieces=stopper.pieces(tokens),
            finish_reason=stopper.cut(list(tokens), 0)[1] or "length",
            levels=self.recipe.cascade.levels,
            masks=masks,
            timings=Timings(one.first_token_ms, self._ms(), tuple(self._spans)),
            edges=tuple(one.edges),
            gate=one.seen.gate,
            mode=self.recipe.cascade.mode,
            target_passes=one.passes,
            prompt_tokens=one.prompt_tokens,
            notes=(*self.recipe.marks, *one.notes),
        )


class _Viewed:
    """The event branch after its turn: what it made of one recording."""

    def __init__(self, view: EventView, encodes: bool) -> None:
        self._view = view
        self.encoder = encodes or None

    def view(self, events: Events, encode: bool = True) -> EventView:
        return self._view


class _Failing:
    """Keeps an error of one request from the others."""

    def __init__(self, one: _Asked) -> None:
        self._one = one

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, CascadeError):
            self._one.failed = error
            return True
        return False


def _give_back() -> None:
    """Let go of what nobody holds any more, now: the next model needs the room."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
