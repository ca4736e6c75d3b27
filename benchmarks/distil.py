"""Which way of teaching a drafter makes its verifier accept more, and does a cosine tell? (`cascade train distil`)

    python -m benchmarks.distil [--quick] [--part students|adapters] [--recordings DIR] [--out DIR]

A light with random weights learns a little from hard labels (the simulator's answers); from there each method goes on
for the same number of steps over the same clips and questions, hard labels among them; the bundled light, which was
taught long before, goes on by one method. Measured on held-out scenes and, where given, on real recordings: agreement
with heavy's own greedy tokens (teacher-forced, features dense and aligned), chance that the ratio test accepts
(1 - TVD), and per edge of a light -> heavy and a light -> mid -> heavy cascade, run by the engine, the acceptance
length, tokens per target pass, and the hazard by position (h1 is the first draft's). Before that: seven kinds of
adapter, cosine beside tokens, and an adapter that learns on from refused frames. --out keeps the runs, and goes on with
them. One JSON line last; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cascade_runtime.config import load_recipe
from cascade_runtime.evaluation.acceptance import Acceptance, TargetAnswers, agree, check_held_out, run_cascade
from cascade_runtime.evaluation.recordings import QUESTIONS, read_recordings
from cascade_runtime.evaluation.report import see_aligned, see_dense
from cascade_runtime.evaluation.simulated import Exam, Question, draw_exam
from cascade_runtime.models.adapter_kinds import KINDS
from cascade_runtime.models.bundled import family_path
from cascade_runtime.models.event_encoder import load_adapter, load_event_encoder
from cascade_runtime.models.family import read_model
from cascade_runtime.training.distil.config import DistilConfig
from cascade_runtime.training.distil.lessons import draw_questions
from cascade_runtime.training.distil.run import Pairing, distil
from cascade_runtime.training.distil.speak import RenderedBranch, RenderedClip, answer, answer_ids, load_speaker
from cascade_runtime.training.event_adapters import FeaturePairs, fit_kind
from cascade_runtime.training.language import Packer
from cascade_runtime.vision.adapter_verifier import AdapterVerifier
from cascade_runtime.vision.event_branch import EventBranch
from cascade_runtime.vision.front_end import FrontEnd
from cascade_runtime.vision.online import OnlineUpdater

HAZARDS = (1, 2, 3, 4, 6, 8, 12)
EXAM_SEED = 4


@dataclass(frozen=True)
class Amount:
    """How much of everything."""

    first_steps: int
    scenes: int
    steps: int
    agree_scenes: int
    cascade_scenes: int
    adapter_clips: int
    adapter_steps: int
    losses: tuple[str, ...]


FULL = Amount(100, 300, 300, 30, 6, 400, 200, ("tvd", "jsd", "rkl"))
QUICK = Amount(30, 32, 30, 12, 3, 128, 40, ())


class Bench:
    """The target, the held-out scenes, what the target says about them, and the results."""

    def __init__(self, amount: Amount, out: Path, recordings: Path | None) -> None:
        self.amount, self.out, self.start = amount, out, time.perf_counter()
        self.heavy, tokenizer = read_model(family_path("heavy"))
        self.mid, _ = read_model(family_path("mid"))
        self.packer = Packer(tokenizer)
        self.encoder = load_event_encoder(family_path("event_encoder"))
        self.adapter = load_adapter(family_path("adapter"))
        self.exam = draw_exam(amount.agree_scenes, seed=EXAM_SEED)
        self.dense = see_dense(self.heavy.model.vision_tower, self.exam.maps)
        self.said = self._listen(self.exam.maps, self.dense, self.exam.questions)
        self.real = _real(recordings) if recordings else None
        if self.real:
            raw = see_dense(self.heavy.model.vision_tower, self.real.maps)
            self.real_said = self._listen(self.real.maps, raw, self.real.questions)
        self.results: dict[str, Any] = {}

    def _listen(self, maps: torch.Tensor, raw: torch.Tensor, questions: Sequence[Question]) -> TargetAnswers:
        asked = [(question.scene, question.text) for question in questions]
        ids = answer_ids(answer(load_speaker(load_recipe("light_heavy")), maps, asked))
        return TargetAnswers.read(self.heavy, self.packer, raw, questions, ids)

    def note(self, line: str) -> None:
        print(f"# {time.perf_counter() - self.start:5.0f} s  {line}", file=sys.stderr, flush=True)

    def students(self) -> Iterator[tuple[str, Path]]:
        """(name, checkpoint) one after the other, each trained when its turn comes."""
        amount = self.amount
        yield "bundled light", family_path("light")
        on: dict[str, Any] = {
            "scenes": amount.scenes, "steps": amount.steps, "batch": 4, "learning_rate": 1.5e-3, "own": 0.15,
            "rounds": 1,
        }  # fmt: skip
        bundled = Pairing("light", "heavy", lessons=self.out / "lessons")
        first = DistilConfig(
            **{**on, "method": "hard", "steps": amount.first_steps, "learning_rate": 2e-3, "aligned": 0.3}, fresh=True
        )
        begun = self._train(bundled, first, "begun")
        yield f"random, {amount.first_steps} hard", begun
        pairing = replace(bundled, student=str(begun))
        yield f"  +{amount.steps} hard", self._train(pairing, DistilConfig(method="hard", **on), "hard")
        yield f"  +{amount.steps} distillspec fkl", self._train(pairing, DistilConfig(**on), "distillspec-fkl")
        # AdaSPEC's reference is a drafter that forward KL has distilled: such a one was just made.
        pairing = replace(pairing, reference=self.out / "distillspec-fkl" / "light")
        for method in ("layerwise", "adaspec", "cascade_aware", "speckd"):
            yield f"  +{amount.steps} {method} fkl", self._train(pairing, DistilConfig(method=method, **on), method)
        yield f"  +{amount.steps} massv", self._train(pairing, DistilConfig(method="massv", **on), "massv")
        for loss in amount.losses:
            made = self._train(pairing, DistilConfig(loss=loss, **on), f"distillspec-{loss}")
            yield f"  +{amount.steps} distillspec {loss}", made
        shipped = DistilConfig(**{**on, "learning_rate": 3e-4})
        yield f"bundled light, +{amount.steps} distillspec fkl", self._train(bundled, shipped, "bundled")

    def _train(self, pairing: Pairing, config: DistilConfig, name: str) -> Path:
        return distil(pairing, config, self.out / name, progress=self.note)

    def table(self) -> None:
        """Train and measure every student."""
        titles = f"{'dense':>7}{'aligned':>9}{'1-TVD':>7}{'length':>8}{'per pass':>10}  "
        print(f"\n{'student':<38}{'edge':<12}{titles}" + "".join(f"{f'h{at}':>7}" for at in HAZARDS), flush=True)
        for name, path in self.students():
            self.measure(name, path)

    def measure(self, name: str, path: Path) -> None:
        """All figures of one student, as rows of the table and in the results."""
        student, title = read_model(path)[0], name.strip()
        aligned = see_aligned(self.encoder, self.adapter, self.exam.maps)
        on_dense = agree(student, self.packer, self.dense, self.said)
        on_aligned = agree(student, self.packer, aligned, self.said)
        maps = self.exam.maps[: self.amount.cascade_scenes]
        questions = [q for q in self.exam.questions if q.scene < len(maps)]
        stage = f'stages.light.checkpoint="{path}"'
        two = run_cascade(load_recipe("light_heavy", [stage]), maps, questions)
        three = run_cascade(load_recipe("three_level", [stage]), maps, questions)
        cells = f"{on_dense.tokens:>7.3f}{on_aligned.tokens:>9.3f}{on_dense.ratio:>7.3f}"
        figures: dict[str, Any] = {"dense": on_dense.tokens, "aligned": on_aligned.tokens, "ratio": on_dense.ratio}
        for run in (two, three):
            for edge in run.edges:
                print(_row(name, edge, cells, run), flush=True)
                figures[f"{edge}, {len(run.edges)} edges"] = _figures(run, edge)
                name, cells = "", " " * len(cells)
        if self.real:
            real = run_cascade(load_recipe("light_heavy", [stage]), self.real.maps, self.real.questions)
            found = agree(
                student, self.packer, see_dense(self.heavy.model.vision_tower, self.real.maps), self.real_said
            )
            print(_row("  on real recordings", "light-heavy", f"{found.tokens:>7.3f}{'':>9}{found.ratio:>7.3f}", real))
            figures["real"] = {"dense": found.tokens, "ratio": found.ratio, **_figures(real, "light-heavy")}
        self.results.setdefault("students", {})[title] = figures

    def adapters(self) -> None:
        """Cosine beside tokens, per kind of adapter."""
        lessons = draw_questions(self.packer, self.amount.adapter_clips, 1, 5, first_chunk=2000)
        check_held_out(lessons, self.exam.maps)
        pairs = FeaturePairs.encode(lessons.maps, self.encoder, self.heavy.model.vision_tower)
        held = FeaturePairs.encode(self.exam.maps, self.encoder, self.heavy.model.vision_tower)
        light, _ = read_model(family_path("light"))
        print(f"\n{'adapter':<22}{'parameters':>11}{'cosine':>8}{'>= .8':>7}{'light':>8}{'mid':>8}{'heavy':>8}")
        cosines, shares = [], []
        made = {"bundled": self.adapter}
        for kind in KINDS:
            made[kind] = fit_kind(kind, self.adapter, pairs, steps=self.amount.adapter_steps, progress=self.note)
        few = max(self.amount.adapter_steps // 10, 5)
        for kind in ("linear", "mlp"):
            made[f"{kind}, {few} steps"] = fit_kind(kind, self.adapter, pairs, steps=few, progress=self.note)
        for name, adapter in made.items():
            with torch.no_grad():
                found = adapter(held.event.flatten(0, 1)) if name == "bundled" else adapter(held.event).flatten(0, 1)
            cosine = F.cosine_similarity(found, held.dense.flatten(0, 1), dim=-1).mean(-1)
            raw = found.view(held.dense.shape)
            tokens = [agree(model, self.packer, raw, self.said).tokens for model in (light, self.mid, self.heavy)]
            count = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
            accepted = float((cosine >= 0.8).float().mean())
            print(
                f"{name:<22}{count:>11}{float(cosine.mean()):>8.4f}{accepted:>7.2f}"
                + "".join(f"{share:>8.4f}" for share in tokens),
                flush=True,
            )
            cosines.append(float(cosine.mean()))
            shares.append(tokens[0])
            self.results.setdefault("adapters", {})[name] = {"cosine": cosines[-1], "light": tokens[0]}
        order = np.corrcoef(np.argsort(np.argsort(cosines)), np.argsort(np.argsort(shares)))[0, 1]
        print(f"rank correlation of cosine and light's tokens over these adapters: {order:.2f}")
        self.results["rank_correlation"] = round(float(order), 3)
        self._online(made[f"linear, {few} steps"], lessons.maps)

    def _online(self, adapter: Any, stream: torch.Tensor) -> None:
        """The barely trained adapter meets a stream of clips, with an updater; frames accepted before and after."""
        recipe = load_recipe("light_heavy")
        branch, loaded = EventBranch.load(recipe), AdapterVerifier.load(recipe)
        verifier = AdapterVerifier(loaded.towers, adapter, recipe.gate)
        front = FrontEnd(recipe, RenderedBranch((branch.rule, branch.options), branch.encoder), verifier)
        accepted = [_accepted(front, self.exam.maps)]
        front.updater = updater = OnlineUpdater(adapter)
        _accepted(front, stream[:200])
        front.updater = None
        accepted.append(_accepted(front, self.exam.maps))
        print(
            f"online: a linear adapter of few steps, {min(len(stream), 200)} clips with an updater ({updater.refused} "
            f"frames refused, {updater.updates} updates kept, {updater.undone} undone): accepted on held-out scenes "
            f"{accepted[0]:.2f} -> {accepted[1]:.2f}"
        )
        self.results["online"] = {"before": accepted[0], "after": accepted[1], "updates": updater.updates}


def _accepted(front: FrontEnd, maps: torch.Tensor) -> float:
    """Share of frames that the gate accepts."""
    verdicts: list[bool] = []
    for clip in maps:
        events: Any = RenderedClip(clip.float().numpy())
        gate: Any = front.see(events).gate
        verdicts += [verdict == "accepted" for verdict in gate["verdicts"]]
    return sum(verdicts) / len(verdicts)


def _real(directory: Path) -> Exam:
    """Real recordings and two questions about each; their facts are not asked for."""
    found, kinds = list(read_recordings(directory)), ("direction", "describe")
    questions = [Question(i, kind, QUESTIONS[kind], "") for i in range(len(found)) for kind in kinds]
    return Exam(torch.stack([recording.maps for recording in found]), np.zeros((len(found), 7)), tuple(questions))


def _row(name: str, edge: str, cells: str, run: Acceptance) -> str:
    hazards = run.edges[edge].acceptance_hazard_per_pos
    shown = [hazards[at - 1] if at <= len(hazards) else math.nan for at in HAZARDS]
    last = f"{run.tokens_per_pass:>10.2f}" if edge.endswith("heavy") else " " * 10
    return f"{name:<38}{edge:<12}{cells}{run.edges[edge].mean_acceptance_length:>8.2f}{last}  " + "".join(
        "      -" if math.isnan(hazard) else f"{hazard:>7.3f}" for hazard in shown
    )


def _figures(run: Acceptance, edge: str) -> dict[str, float]:
    return {
        "length": round(run.edges[edge].mean_acceptance_length, 3),
        "tokens_per_pass": round(run.tokens_per_pass, 3),
        "hazard_1": round(run.edges[edge].acceptance_hazard_per_pos[0], 4),
    }


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about three minutes: proves the path")
    parser.add_argument("--part", choices=("adapters", "students"), help="one of the two alone")
    parser.add_argument("--first-steps", type=int, metavar="N", help="of the beginner, on hard labels")
    parser.add_argument("--steps", type=int, metavar="N", help="of every method")
    parser.add_argument("--recordings", type=Path, metavar="DIR", help="real recordings to measure on too")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep lessons and checkpoints here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(f"# {os.cpu_count()} cores, one thread, CPU, torch {torch.__version__}, commit {commit.stdout.strip()}")
    with tempfile.TemporaryDirectory() as scratch:
        amount = QUICK if args.quick else FULL
        given = {name: getattr(args, name) for name in ("first_steps", "steps") if getattr(args, name) is not None}
        amount = replace(amount, **given)
        bench = Bench(amount, args.out or Path(scratch), args.recordings)
        check_held_out(draw_questions(bench.packer, amount.scenes, 1, DistilConfig().seed), bench.exam.maps)
        print(f"# {amount.scenes} scenes of lessons, {len(bench.exam.questions)} questions about {amount.agree_scenes} "
              f"held-out scenes, those about {amount.cascade_scenes} of them for the cascades")  # fmt: skip
        if args.part != "students":
            bench.adapters()
        if args.part != "adapters":
            bench.table()
        bench.note("done")
    print(json.dumps(bench.results))


if __name__ == "__main__":
    main()
