"""The report on a family: measured in one go, printed as Markdown tables, kept as one JSON object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cascade_runtime.evaluation import recordings as real
from cascade_runtime.evaluation.direction import near
from cascade_runtime.evaluation.simulated import WITHIN_45, agreement, answers, draw_exam, score
from cascade_runtime.models.bundled import LAYERS, MEMBERS, family_path
from cascade_runtime.models.event_encoder import Adapter, EventEncoder, load_adapter, load_event_encoder
from cascade_runtime.models.family import read_model
from cascade_runtime.training.adapter import adapter_quality
from cascade_runtime.training.facts import CLASSES
from cascade_runtime.training.language import Packer
from cascade_runtime.training.questions import read_facts
from cascade_runtime.training.tower import encode

_BATCH = 64


@dataclass(frozen=True)
class FamilyReport:
    """Shares in 0..1. `simulated`: model -> question kind (or "overall") -> accuracy; `aligned`: the same, seen
    through the adapter.

    seed: which held-out scenes. asked: question kind -> number of questions.
    agreement: "light on dense" and so on -> share of heavy's greedy tokens (on dense features) that the model chooses.
    megabytes, parameters: member -> size of its folder, number of weights.
    recordings: file -> model -> {"answers": {kind: text}, "stated": {fact: class or None}}, with "computed" facts
    beside.
    """

    scenes: int
    seed: int
    questions: int
    asked: dict[str, int]
    simulated: dict[str, dict[str, float]]
    aligned: dict[str, dict[str, float]]
    agreement: dict[str, dict[str, float]]
    adapter: dict[str, float]
    recordings: dict[str, dict[str, object]]
    real_accuracy: dict[str, dict[str, str]]
    megabytes: dict[str, float]
    parameters: dict[str, int]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def evaluate_family(
    path: str | Path | None = None,
    *,
    recordings: str | Path | None = None,
    scenes: int = 300,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> FamilyReport:
    """Evaluate a family directory (the bundled one by default) on held-out scenes and, where given, real recordings.

    Raises `InputError` as `draw_exam` does.
    """
    root = Path(path) if path is not None else family_path("heavy").parent
    exam = draw_exam(scenes, seed=seed)
    models = {name: read_model(root / name) for name in LAYERS}
    packer = Packer(models["heavy"][1])
    encoder, adapter = load_event_encoder(root / "event_encoder"), load_adapter(root / "adapter")
    tower = models["heavy"][0].model.vision_tower
    dense, aligned = see_dense(tower, exam.maps), see_aligned(encoder, adapter, exam.maps)
    simulated, through, agree, asked = {}, {}, {}, {}
    target = answers(models["heavy"][0], packer, dense, exam.questions)
    for name in reversed(list(models)):
        model = models[name][0]
        for raw, seen, table in ((dense, "dense", simulated), (aligned, "aligned", through)):
            heavy_again = name == "heavy" and seen == "dense"
            said = target if heavy_again else answers(model, packer, raw, exam.questions)
            result = score(exam, packer, said)
            asked = dict(sorted(result.asked.items()))
            table[name] = {"overall": result.overall, **dict(sorted(result.per_kind().items()))}
            if not heavy_again:
                tokens, whole = agreement(model, packer, raw, exam, target)
                agree[f"{name} on {seen}"] = {"tokens": tokens, "whole answers": whole}
        progress(f"{name}: {simulated[name]['overall']:.3f} of {len(exam.questions)} questions right")
    quality = adapter_quality(encoder, adapter, tower, exam.maps)
    found, accuracy = {}, {}
    if recordings is not None:
        found, accuracy = on_recordings(Path(recordings), {n: m for n, (m, _) in models.items()}, packer)
    sizes = {name: _megabytes(root / name) for name in MEMBERS}
    members = {**{name: model for name, (model, _) in models.items()}, "event_encoder": encoder, "adapter": adapter}
    counts = {name: sum(part.numel() for part in members[name].parameters()) for name in MEMBERS}
    return FamilyReport(
        scenes=len(exam.rows),
        seed=seed,
        questions=len(exam.questions),
        asked=asked,
        simulated=simulated,
        aligned=through,
        agreement=agree,
        adapter=quality,
        recordings=found,
        real_accuracy=accuracy,
        megabytes=sizes,
        parameters=counts,
    )


@torch.inference_mode()
def see_dense(tower: torch.nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """Raw features of the tower (n, F, P, Dv)."""
    return torch.cat([encode(tower, part) for part in maps.split(_BATCH)])


@torch.inference_mode()
def see_aligned(encoder: EventEncoder, adapter: Adapter, maps: torch.Tensor) -> torch.Tensor:
    """The same shape, from the event encoder and the adapter."""
    parts = [adapter(encoder(part.flatten(0, 1))) for part in maps.split(_BATCH)]
    features = torch.cat(parts)
    return features.view(*maps.shape[:2], *features.shape[1:])


def on_recordings(
    directory: Path, models: dict[str, torch.nn.Module], packer: Packer
) -> tuple[dict[str, dict[str, object]], dict[str, dict[str, str]]]:
    """(answers per recording and model with the computed facts beside, "right/graded" per model and fact)."""
    found: dict[str, dict[str, object]] = {}
    counts: dict[str, dict[str, list[bool]]] = {name: {} for name in models}
    for recording in real.read_recordings(directory):
        entry: dict[str, object] = {"computed": recording.facts}
        for name, model in models.items():
            raw = see_dense(model.model.vision_tower, recording.maps[None])
            texts = real.question_texts(model, packer, raw)
            stated = {fact: read_facts(text).get(fact) for fact, text in texts.items() if fact != "describe"}
            entry[name] = {"answers": texts, "stated": stated}
            for fact, truth in recording.facts.items():
                counts[name].setdefault(fact, []).append(stated[fact] == truth)
            if "direction" in recording.facts:
                described = read_facts(texts["describe"]).get("direction")
                for label, said in ((WITHIN_45, stated["direction"]), ("described within 45", described)):
                    counts[name].setdefault(label, []).append(near(said, recording.facts["direction"]))
        found[recording.name] = entry
    accuracy = {
        name: {fact: f"{sum(right)}/{len(right)}" for fact, right in facts.items()} for name, facts in counts.items()
    }
    return found, accuracy


def print_report(report: FamilyReport) -> None:
    """The tables, as the family's card shows them."""
    kinds = list(report.asked)
    for title, table in (("dense features", report.simulated), ("aligned features", report.aligned)):
        print(f"\nAccuracy on {report.scenes} held-out scenes of seed {report.seed}, {title} (%)\n")
        rows = [[name, *(f"{100 * row[kind]:.1f}" for kind in ("overall", *kinds))] for name, row in table.items()]
        questions = ["questions", str(report.questions), *(str(report.asked[kind]) for kind in kinds)]
        _print_table(["model", "overall", *kinds], [*rows, questions])
    print("\nAgreement with heavy's greedy answers on dense features (%)\n")
    shares = [[name, *(f"{100 * value:.1f}" for value in row.values())] for name, row in report.agreement.items()]
    _print_table(["model", "tokens", "whole answers"], shares)
    print("\nAdapter: " + ", ".join(f"{name} {value:.4f}" for name, value in report.adapter.items()))
    print("\nSizes\n")
    _print_table(
        ["member", "parameters", "MB"],
        [[name, f"{report.parameters[name] / 1e6:.2f} M", f"{report.megabytes[name]:.2f}"] for name in MEMBERS],
    )
    if report.recordings:
        _print_recordings(report)


def _print_recordings(report: FamilyReport) -> None:
    print("\nReal recordings, right/graded per fact\n")
    facts = sorted({fact for row in report.real_accuracy.values() for fact in row})
    rows = [[name, *(row.get(fact, "-") for fact in facts)] for name, row in report.real_accuracy.items()]
    _print_table(["model", *facts], rows)
    print("\nWhat heavy says of them\n")
    rows = []
    for file, entry in report.recordings.items():
        computed, heavy = entry["computed"], entry["heavy"]
        stated = {fact: heavy["stated"][fact] for fact in computed}  # type: ignore[index]
        rows.append([file, _named(computed), _named(stated), heavy["answers"]["describe"]])  # type: ignore[index]
    asked = f'heavy, "{real.QUESTIONS["describe"]}"'
    _print_table(["recording", "computed from the events", "heavy says (facts asked for)", asked], rows)


def _named(facts: Mapping[str, int | None]) -> str:
    return "; ".join(f"{fact} {'-' if k is None else CLASSES[fact][k]}" for fact, k in facts.items())


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")


def _megabytes(directory: Path) -> float:
    return round(sum(file.stat().st_size for file in directory.iterdir() if file.is_file()) / 1e6, 2)
