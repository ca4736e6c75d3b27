"""`Decoder.extend`: the one primitive of the runtime, over a language model and its KV slots.

A row is one request inside one model. Its KV cache holds a prompt (embeddings, visual tokens among them) and then
tokens of the answer. `extend` takes, per row, the prefix of the answer to stand on and drafts beyond it; it rolls the
row back to where its cache agrees, feeds only what is missing, and says what this model would have chosen after the
prefix and after each draft:

    prefill         extend(prefix=[],     drafts=[])          -> 1 choice
    decode          extend(prefix=answer, drafts=[])          -> 1 choice
    verify n drafts extend(prefix=answer, drafts=[d1 .. dn])  -> n + 1 choices
    prefill + verify in one pass: the same call on a row that has never run

Rollback is lowering a length. Prompts that begin alike (many questions about one recording) prefill their beginning
once: a slot that holds it, of a row that runs or of one that has ended, is copied. It knows no other stage, no
channel, no stop condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.acceptance.law import Law, laws
from cascade_runtime.decoding.choice import NOT_FINITE, choose
from cascade_runtime.errors import CapacityError, InputError, PromptTooLong
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.slot_cache import SlotCache

_CALL = 48  # as many padded queries cost what one more call of attention per layer costs


@dataclass(frozen=True)
class PromptEmbeds:
    """A prompt ready to be fed to one model: embeds (n, D), positions (n,) or (3, n), and the position of the
    first answer token. Prompts with the same non-empty `prefix` are equal in their first `prefix_length` positions.
    """

    embeds: torch.Tensor
    positions: torch.Tensor
    next_position: int
    prefix: str = ""
    prefix_length: int = 0

    def __len__(self) -> int:
        return self.embeds.shape[0]


@dataclass(eq=False)
class Row:
    """One request in one decoder: its slot, its prompt, and what its cache holds."""

    slot: int
    prompt: PromptEmbeds
    sampling: SamplingParams
    held: int = 0  # positions in the cache, prompt included
    tokens: list[int] = field(default_factory=list)  # answer tokens in the cache
    laws: dict[int, Law] = field(default_factory=dict)  # of its last pass's choices, by position, where they are told
    confidence: float = 1.0  # the model's probability of its last choice but noise, where the decoder tells it
    poisoned: bool = False  # non-finite numbers were written to the slot
    released: bool = False

    @property
    def prompt_left(self) -> int:
        """Positions of the prompt that are not in the cache."""
        return max(0, len(self.prompt) - self.held)


@dataclass(frozen=True)
class Extension:
    """One row's share of a pass: stand on `prefix` (the whole answer so far), look beyond it along `drafts`.

    prompt: feed at most so many positions of the prompt; where that leaves some of it, nothing is chosen yet.
    """

    row: Row
    prefix: Sequence[int]
    drafts: Sequence[int] = ()
    prompt: int | None = None


class Decoder:
    """Rows of requests over one language model. Not thread-safe: one loop owns it.

    compiled: compile passes of one row (`models/compiled.py`), on a CPU. tells_confidence: keep, per row, the largest
    probability of the last position of each pass. tells_laws: keep, per row, what each choice of the last pass was
    drawn from.
    """

    def __init__(self, language: LanguageModel, *, slots: int, max_len: int, compiled: bool = False) -> None:
        self.language = language
        self.cache = language.new_cache(slots, max_len)
        self.shortcut: Any = _shortcut(language, self.cache, compiled=compiled)
        self._free = set(range(slots))
        self._holds: dict[int, str] = {}  # slot -> the prefix whose keys and values lie in it, free or not
        self._wait: set[Row] = set()  # rows that hold nothing yet, and whose prefix may turn up in another slot
        self.passes = 0
        self.tokens_fed = 0
        self.tokens_shared = 0
        self.tells_confidence = False
        self.tells_laws = False

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def admit(self, prompt: PromptEmbeds, sampling: SamplingParams) -> Row:
        """Give a request a slot, with its prefix in it where another slot holds that. Nothing is computed yet.

        Raises `PromptTooLong` when prompt and answer cannot fit a slot, `CapacityError` when no slot is free.
        """
        check_fits(len(prompt), sampling, self.cache.max_len)
        if not self._free:
            raise CapacityError(f"all {self.cache.slots} KV slots are taken")
        free = [slot for slot in self._free if prompt.prefix and self._holds.get(slot) == prompt.prefix]
        row = Row(min(free or self._free), prompt, sampling)
        self._free.discard(row.slot)
        if prompt.prefix:
            self._wait.add(row)
            self._share(prompt.prefix)
        if not row.held:
            self._holds.pop(row.slot, None)
        return row

    def release(self, row: Row) -> None:
        """Give the slot back; a second call does nothing."""
        if row.released:
            return
        row.released = True
        self._wait.discard(row)
        if row.poisoned:
            self._scrub(row.slot)
        self._free.add(row.slot)

    def _share(self, prefix: str) -> None:
        """Copy a prefix that some slot holds to all rows that wait for it."""
        source = next((slot for slot, held in self._holds.items() if held == prefix), None)
        for row in [row for row in self._wait if source is not None and row.prompt.prefix == prefix]:
            assert source is not None
            self._wait.discard(row)
            if row.slot != source:
                self.cache.copy(source, row.slot, row.prompt.prefix_length)
                self._holds[row.slot] = prefix
            row.held = row.prompt.prefix_length
            self.tokens_shared += row.held

    def _scrub(self, slot: int) -> None:
        self.cache.scrub(slot)
        self._holds.pop(slot, None)

    @torch.inference_mode()
    def extend(self, extensions: Sequence[Extension]) -> list[list[int]]:
        """For each extension the choices after its prefix and after each of its drafts (1 + len(drafts) tokens), none
        where its prompt is not fed to the end.

        A choice of `NOT_FINITE` means the model produced no usable numbers there. One bad draft spoils all choices of
        its row, so the caller asks again without drafts; a row that fails without drafts should be failed. The next
        call rebuilds such a row from its prompt.
        """
        plans = [self._plan(extension) for extension in extensions]
        order, groups = _attending([plan.count for plan in plans], [plan.row.slot for plan in plans])
        choices: list[list[int]] = [[] for _ in extensions]
        for i, chosen in zip(order, self._run([plans[i] for i in order], groups), strict=True):
            choices[i] = chosen
        return choices

    def _plan(self, extension: Extension) -> _Plan:
        """Roll the row back to where it agrees with the prefix; list what must be fed (at least one position)."""
        row, prompt = extension.row, len(extension.row.prompt)
        if row.released:
            raise InputError("row", row.slot, "a row that was not released")
        if row.poisoned:  # a masked NaN still spoils a weighted sum: start this row's slot anew
            self._scrub(row.slot)
            row.held, row.tokens, row.poisoned = 0, [], False
        wanted = [*extension.prefix, *extension.drafts]
        agree = 0
        for mine, theirs in zip(row.tokens, extension.prefix, strict=False):
            if mine != theirs:
                break
            agree += 1
        last_known = prompt + len(extension.prefix) - 1  # its choice is asked for, so it is always fed
        row.held = min(row.held, prompt + agree, last_known)
        del row.tokens[max(row.held - prompt, 0) :]
        if extension.prompt is not None and prompt - row.held > extension.prompt:
            return _Plan(row, row.held, row.held + extension.prompt, [], choices=0)
        return _Plan(row, row.held, prompt + len(wanted), wanted, choices=len(extension.drafts) + 1)

    def _run(self, plans: Sequence[_Plan], groups: Sequence[int]) -> list[list[int]]:
        self.passes += 1
        self.tokens_fed += sum(plan.count for plan in plans)
        logits = self._shortened(plans)
        if logits is None:
            logits = self._computed(plans, groups)
        if not len(logits):
            return [self._settle(plan, []) for plan in plans]
        params = [plan.row.sampling for plan in plans for _ in range(plan.choices)]
        indices = [len(plan.wanted) - plan.choices + 1 + j for plan in plans for j in range(plan.choices)]
        if self.tells_confidence:
            sure = iter(logits.softmax(-1).amax(-1).tolist())
            for plan in plans:
                for _ in range(plan.choices):
                    plan.row.confidence = next(sure)
        if self.tells_laws:
            for plan, mine in zip(plans, logits.split([plan.choices for plan in plans]), strict=True):
                plan.row.laws = dict(enumerate(laws(mine, plan.row.sampling), len(plan.wanted) - plan.choices + 1))
        flat = iter(choose(logits, params, indices))
        return [self._settle(plan, [next(flat) for _ in range(plan.choices)]) for plan in plans]

    def _computed(self, plans: Sequence[_Plan], groups: Sequence[int]) -> torch.Tensor:
        """Logits (choices, V) of one packed pass."""
        embeds, positions = self._inputs(plans)
        hidden = self.language.forward(
            embeds,
            slots=[plan.row.slot for plan in plans],
            starts=[plan.start for plan in plans],
            counts=[plan.count for plan in plans],
            positions=positions,
            cache=self.cache,
            groups=groups,
        )
        asked, fed = [], 0
        for plan in plans:
            fed += plan.count
            asked += range(fed - plan.choices, fed)
        if len(asked) < len(hidden):
            hidden = hidden[torch.tensor(asked, dtype=torch.long, device=hidden.device)]
        return self.language.logits(hidden) if asked else hidden

    def _shortened(self, plans: Sequence[_Plan]) -> torch.Tensor | None:
        """The same by the shortcut; None where it does not serve this: prompts, many tokens."""
        if self.shortcut is None or any(plan.prompt_count for plan in plans):
            return None
        logits = self.shortcut.logits(
            [plan.wanted[plan.first_token :] for plan in plans],
            slots=[plan.row.slot for plan in plans],
            starts=[plan.start for plan in plans],
            first_positions=[plan.row.prompt.next_position + plan.first_token for plan in plans],
        )
        if logits is None:
            return None
        longest = logits.shape[1]
        asked = [
            i * longest + plan.count - plan.choices + j for i, plan in enumerate(plans) for j in range(plan.choices)
        ]
        flat = logits.flatten(0, 1)
        return flat if len(asked) == len(flat) else flat[torch.tensor(asked, device=flat.device)]

    def _inputs(self, plans: Sequence[_Plan]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (N, D) and positions (N,) or (3, N) of what the rows feed, one after the other."""
        ids: list[int] = []
        at: list[int] = []
        prefills: list[tuple[slice, _Plan]] = []
        for plan in plans:
            if plan.prompt_count:
                prefills.append((slice(len(ids), len(ids) + plan.prompt_count), plan))
            tokens = plan.wanted[plan.first_token :]
            first = plan.row.prompt.next_position + plan.first_token
            ids += [0] * plan.prompt_count + tokens
            at += [0] * plan.prompt_count + list(range(first, first + len(tokens)))
        embeds = self.language.embed(ids)
        positions = torch.tensor(at, device=self.language.device)
        if self.language.position_axes > 1:
            positions = positions.repeat(self.language.position_axes, 1)
        for here, plan in prefills:
            fed = slice(plan.start, plan.start + plan.prompt_count)
            embeds[here] = plan.row.prompt.embeds[fed]
            positions[..., here] = plan.row.prompt.positions[..., fed]
        return embeds, positions

    def _settle(self, plan: _Plan, chosen: list[int]) -> list[int]:
        row = plan.row
        row.held = plan.start + plan.count
        row.tokens = list(plan.wanted)
        row.poisoned = row.poisoned or NOT_FINITE in chosen
        prefix = row.prompt.prefix
        if prefix and not row.poisoned and row.slot not in self._holds and row.held >= row.prompt.prefix_length:
            self._holds[row.slot] = prefix
            self._wait.discard(row)
            self._share(prefix)
        return chosen


@dataclass(frozen=True)
class _Plan:
    row: Row
    start: int
    stop: int
    wanted: list[int]
    choices: int

    @property
    def count(self) -> int:
        """Positions this row feeds."""
        return self.stop - self.start

    @property
    def prompt_count(self) -> int:
        """How many of them are of the prompt."""
        return max(min(len(self.row.prompt), self.stop) - self.start, 0)

    @property
    def first_token(self) -> int:
        """The first answer token among them."""
        return max(self.start - len(self.row.prompt), 0)


def _shortcut(language: LanguageModel, cache: SlotCache, *, compiled: bool) -> Any:
    """A faster way for passes of few tokens, where there is one. Imported on demand: a GPU's kernels are only there
    with a GPU's PyTorch, and a compiler takes its time.
    """
    if compiled:
        from cascade_runtime.models.compiled import Compiled

        return Compiled(language, cache)
    if str(language.device).startswith("cuda"):
        from cascade_runtime.models.replay import Replays

        return Replays(language, cache)
    return None


def _attending(counts: Sequence[int], slots: Sequence[int]) -> tuple[list[int], list[int]]:
    """An order of the rows, and how many of them in turn attend together, so that calls and padded queries cost least.

    Within a group slots ascend: neighbouring ones are read in place.
    """
    rows = sorted(range(len(counts)), key=lambda i: slots[i])
    if not rows or len(counts) * max(counts) - sum(counts) <= _CALL:
        return rows, [len(rows)]
    order = sorted(rows, key=lambda i: -counts[i])
    best, cut = [0.0], [0]  # of the first n in order: the least cost, and where the last group begins
    for end in range(1, len(order) + 1):
        cost, start = min((best[j] + _CALL + (end - j) * counts[order[j]], j) for j in range(end))
        best.append(cost)
        cut.append(start)
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(sorted(order[cut[end] : end], key=lambda i: slots[i]))
        end = cut[end]
    return [i for group in groups for i in group], [len(group) for group in groups]


def check_fits(prompt_length: int, sampling: SamplingParams, max_len: int) -> None:
    """Raise `PromptTooLong` unless the prompt, the answer and one block of drafts beyond it fit `max_len` positions."""
    if prompt_length + sampling.max_tokens > max_len:
        raise PromptTooLong(
            "prompt + max_tokens",
            f"{prompt_length} + {sampling.max_tokens}",
            f"at most {max_len} positions in a KV slot",
        )
