"""The report on a family: measured in one go, printed as tables, kept as one JSON object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cascade_runtime.evaluation import recordings as real
from cascade_runtime.evaluation.simulated import agreement, answers, draw_exam, score
from cascade_runtime.models.event_encoder import Adapter, EventEncoder, load_adapter, load_event_encoder
from cascade_runtime.models.family import LAYERS, MEMBERS, family_path, read_model
from cascade_runtime.training.adapter import adapter_quality
from cascade_runtime.training.language import Packer
from cascade_runtime.training.questions import read_facts
from cascade_runtime.training.tower import encode

_BATCH = 64


@dataclass(frozen=True)
class FamilyReport:
    """Shares in 0..1. `simulated`: model -> question kind (or "overall") -> accuracy; `aligned`: the same, seen
    through the adapter.

    agreement: "light on dense" and so on -> share of heavy's greedy tokens (on dense features) that the model chooses.
    recordings: file -> model -> {"answers": {kind: text}, "stated": {fact: class or None}}, with "computed" facts
    beside.
    """

    scenes: int
    questions: int
    simulated: dict[str, dict[str, float]]
    aligned: dict[str, dict[str, float]]
    agreement: dict[str, dict[str, float]]
    adapter: dict[str, float]
    recordings: dict[str, dict[str, object]]
    real_accuracy: dict[str, dict[str, str]]
    megabytes: dict[str, float]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def evaluate_family(
    path: str | Path | None = None,
    *,
    recordings: str | Path | None = None,
    scenes: int = 300,
    progress: Callable[[str], None] = lambda line: None,
) -> FamilyReport:
    """Evaluate a family directory (the bundled one by default) on held-out scenes and, where given, real recordings."""
    root = Path(path) if path is not None else family_path("heavy").parent
    exam = draw_exam(scenes)
    models = {name: read_model(root / name) for name in LAYERS}
    packer = Packer(models["heavy"][1])
    encoder, adapter = load_event_encoder(root / "event_encoder"), load_adapter(root / "adapter")
    tower = models["heavy"][0].model.vision_tower
    dense, aligned = see_dense(tower, exam.maps), see_aligned(encoder, adapter, exam.maps)
    simulated, through, agree = {}, {}, {}
    target = answers(models["heavy"][0], packer, dense, exam.questions)
    for name in reversed(list(models)):
        model = models[name][0]
        for raw, seen, table in ((dense, "dense", simulated), (aligned, "aligned", through)):
            heavy_again = name == "heavy" and seen == "dense"
            said = target if heavy_again else answers(model, packer, raw, exam.questions)
            result = score(exam, packer, said)
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
    return FamilyReport(len(exam.rows), len(exam.questions), simulated, through, agree, quality, found, accuracy, sizes)


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
                for label, said in (("direction within 45", stated["direction"]), ("described within 45", described)):
                    counts[name].setdefault(label, []).append(real.near(said, recording.facts["direction"]))
        found[recording.name] = entry
    accuracy = {
        name: {fact: f"{sum(right)}/{len(right)}" for fact, right in facts.items()} for name, facts in counts.items()
    }
    return found, accuracy


def print_report(report: FamilyReport, show: Callable[[str], None] = print) -> None:
    """The tables."""
    kinds = [kind for kind in report.simulated["heavy"] if kind != "overall"]
    for title, table in (("dense features", report.simulated), ("aligned features", report.aligned)):
        show(f"\nAccuracy on {report.scenes} held-out scenes, {report.questions} questions, {title} (%)")
        show("model    overall " + " ".join(f"{kind:>9}" for kind in kinds))
        for name, row in table.items():
            cells = " ".join(f"{100 * row.get(kind, 0):9.1f}" for kind in kinds)
            show(f"{name:8} {100 * row['overall']:7.1f} {cells}")
    show("\nAgreement with heavy's greedy answers on dense features (%): tokens, whole answers")
    for name, row in report.agreement.items():
        show(f"{name:18} {100 * row['tokens']:6.1f} {100 * row['whole answers']:6.1f}")
    show(f"\nAdapter: {report.adapter}")
    show(f"Weights, MB: {report.megabytes}")
    if report.recordings:
        show("\nReal recordings, right/graded per fact: " + str(report.real_accuracy))
        for file, entry in report.recordings.items():
            described = entry["heavy"]["answers"]["describe"]  # type: ignore[index]
            show(f"  {file}: computed {entry['computed']}\n      heavy: {described}")


def _megabytes(directory: Path) -> float:
    return round(sum(file.stat().st_size for file in directory.iterdir() if file.is_file()) / 1e6, 2)
