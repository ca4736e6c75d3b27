"""How well do the bundled drafting heads know heavy's next words, and what does asking them cost?

    python -m benchmarks.heads [--quick] [--heads DIR] [--scenes N]

Scenes that neither the family nor the heads were trained on, 3 questions each, greedy, on one thread.

accuracy   given the true words so far, how often the word that came is among a head's best 1, 2 and 4, by how far
           ahead (1: the word after the one that heavy's own pass has just given). EAGLE is fed the true words in
           between and its own states. exits: how often they guess heavy's own next word, at the first (1) and the
           second (2)
proposals  at every word of every answer a chain of 5 and trees of 16 and 32 nodes from the drafter objects: nodes that
           heavy would accept; tokens per pass of heavy if each of its passes looked at such a proposal (what is not
           accepted is drafted again, so these are the tokens per pass of a cascade of heavy and the head); ms per call.

A pass of heavy over one row is printed beside it. One JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.head_states import Ask
from cascade_runtime.decoding.heads import load_drafter
from cascade_runtime.decoding.row import Extension
from cascade_runtime.decoding.trees import Tree
from cascade_runtime.evaluation.simulated import draw_exam
from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.bundled import family_path
from cascade_runtime.models.eagle import load_eagle_net
from cascade_runtime.models.exits import load_exits
from cascade_runtime.models.head_folder import HEAD_KINDS, bundled_head
from cascade_runtime.models.medusa import load_medusa
from cascade_runtime.training.heads import accuracy, blocks_read
from cascade_runtime.training.spoken import GREEDY, MAX_LEN, Asked, ask, let_target_speak

SHAPES = {"chain of 5": (1, 5, 5), "tree of 16": (4, 16, 6), "tree of 32": (4, 32, 6)}  # width, budget, depth


@dataclass
class Proposed:
    """Of one shape: per answer how many nodes were right at each word, and the time of each call."""

    accepted: list[list[int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Accepted nodes of a proposal."""
        return statistics.mean(n for answer in self.accepted for n in answer)

    @property
    def per_pass(self) -> float:
        """Tokens per pass of the target, its prompt's pass included."""
        passes = tokens = 0
        for accepted in self.accepted:  # accepted[i]: by a proposal after i + 1 tokens
            at, passes, tokens = 1, passes + 1, tokens + len(accepted) + 1
            while at <= len(accepted):
                at, passes = at + accepted[at - 1] + 1, passes + 1
        return tokens / passes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="six scenes")
    parser.add_argument(
        "--heads", type=Path, metavar="DIR", help="folders medusa, eagle, eagle3, ..; default: the bundled"
    )
    parser.add_argument("--scenes", type=int, metavar="N", help="default: 60")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scenes = args.scenes or (6 if args.quick else 60)
    model = load_checkpoint(family_path("heavy"))
    questions = list(ask(model, _held_out(scenes)))
    language: Any = model.language
    told = {
        kept: let_target_speak(model, iter(questions), keeps=(*kept, language.num_layers), progress=lambda _: None)
        for kept in {blocks_read(kind, language) for kind in HEAD_KINDS}
    }
    said = told[blocks_read("eagle", language)]
    result: dict[str, Any] = {
        "scenes": scenes,
        "answers": len(said),
        "heavy_ms": round(_pass_ms(language, questions[0]), 2),
    }
    print(f"{len(said)} answers about {scenes} scenes; a pass of heavy: {result['heavy_ms']} ms")
    for kind in HEAD_KINDS:
        folder = args.heads / kind if args.heads else bundled_head(kind)
        head = {"medusa": load_medusa, "exits": load_exits}.get(kind, load_eagle_net)(folder, language)
        weights = language.decoder.embed_tokens.weight.float(), language.head.weight.float()
        rows = accuracy(head, told[blocks_read(kind, language)], *weights, depth=5)
        print(f"\n{kind}\n  ahead     top 1   top 2   top 4")
        for ahead, row in enumerate(rows, 1):
            print(f"  {ahead:<5} {row[1]:9.3f} {row[2]:7.3f} {row[4]:7.3f}")
        result[kind] = {f"top{n}": [round(row[n], 4) for row in rows] for n in (1, 2, 4)}
        result[kind] |= _proposals(model, folder, questions)
    print(json.dumps(result))


def _held_out(scenes: int) -> list[tuple[torch.Tensor, list[str]]]:
    exam = draw_exam(scenes, seed=11)
    texts: list[list[str]] = [[] for _ in range(scenes)]
    for question in exam.questions:
        texts[question.scene].append(question.text)
    return list(zip(exam.maps, texts, strict=True))


def _proposals(model: Any, folder: Path, questions: Sequence[Asked]) -> dict[str, Any]:
    decoder = Decoder(model.language, slots=1, max_len=MAX_LEN)
    drafters = {width: load_drafter(folder, decoder, width=width) for width in {w for w, _, _ in SHAPES.values()}}
    told = {name: Proposed() for name in SHAPES}
    for asked in questions:
        row = decoder.admit(asked.prompt, GREEDY)
        answer, trees = list[int](), list[dict[str, Tree]]()
        while not answer or (answer[-1] not in model.language.eos_token_ids and len(answer) < GREEDY.max_tokens):
            (chosen,) = decoder.extend([Extension(row, answer)])
            answer += chosen
            for drafter in drafters.values():
                drafter.observe(row, answer)
            trees.append({})
            for name, (width, budget, depth) in SHAPES.items():
                start = time.process_time()
                (trees[-1][name],) = drafters[width].propose([Ask(row, budget, depth)])
                told[name].seconds.append(time.process_time() - start)
        decoder.release(row)
        for name, one in told.items():
            one.accepted.append([_right(tree[name], answer[i:]) for i, tree in enumerate(trees[:-1], 1)])
    found: dict[str, Any] = {}
    print(f"  {'':<14} accepted  tokens per pass  ms per call")
    for name, one in told.items():
        ms = 1000 * statistics.median(one.seconds)
        print(f"  {name:<14} {one.mean:8.2f} {one.per_pass:16.2f} {ms:12.2f}")
        found[name] = {"accepted": round(one.mean, 3), "tokens_per_pass": round(one.per_pass, 3), "ms": round(ms, 3)}
    return found


def _right(tree: Tree, truth: Sequence[int]) -> int:
    """How many nodes of a tree lie on the path that the answer took."""
    node = -1
    for count, token in enumerate(truth):
        children = (i for i in range(len(tree)) if tree.parents[i] == node and tree.tokens[i] == token)
        node = next(children, -1)
        if node < 0:
            return count
    return len(truth)


def _pass_ms(language: Any, asked: Asked) -> float:
    decoder = Decoder(language, slots=1, max_len=MAX_LEN)
    row, answer, times = decoder.admit(asked.prompt, GREEDY), list[int](), list[float]()
    for _ in range(40):
        start = time.process_time()
        answer += decoder.extend([Extension(row, answer)])[0]
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times[5:])


if __name__ == "__main__":
    main()
