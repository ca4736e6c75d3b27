"""The work, and the text models that rivals run: a recording's visual embeddings become rows of the embedding table.

Rivals that decode text take token ids. So for every scene each model's own projected visual embeddings are put
behind its vocabulary as tokens of their own, and a prompt is plain ids that give every model exactly the embeddings
it is given here: same weights, same prompts, same answers, and drafters see what the target sees. The head's rows
for those tokens repeat that of <video>, which is never said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import Recipe
from cascade_runtime.decoding.row import PromptEmbeds
from cascade_runtime.engine import Engine
from cascade_runtime.models.stage_source import checkpoint_path
from cascade_runtime.training.scenes import simulate_scene

QUESTIONS = (
    "What are the key elements in this scene?",
    "What is happening in this recording?",
    "Which way is it moving?",
    "How high is the event rate?",
)
FIRST_SCENE = 7_000_000  # far from the seeds of training


@dataclass(frozen=True)
class Task:
    """One question about one scene: each level's prompt as embeddings, and as ids of the extended vocabulary."""

    request: GenerateRequest
    embeds: dict[str, PromptEmbeds]
    ids: list[int]


@dataclass(frozen=True)
class Work:
    """All tasks, and the rows that each level's visual embeddings add to its vocabulary of `rows`."""

    tasks: list[Task]
    visual: dict[str, torch.Tensor]
    rows: int


def prepare(engine: Engine, scenes: int) -> Work:
    """Two questions about each of so many scenes."""
    levels, tasks = engine.levels, []
    visual: dict[str, list[torch.Tensor]] = {level.name: [] for level in levels}
    rows = max(level.model.language.lm_head.weight.shape[0] for level in levels)
    extra, video = rows, levels[-1].model.tokenizer.convert_tokens_to_ids("<video>")
    for number in range(scenes):
        events = simulate_scene(FIRST_SCENE + number).events
        seen = engine.front_end.see(events)
        for turn in range(2):
            question = QUESTIONS[(number + turn) % len(QUESTIONS)]
            embeds = {level.name: level.prompt(question, seen.for_target) for level in levels}
            built = levels[-1].model.prompts.build(question, num_visual=None, frames=seen.for_target.frames)
            ids = built.input_ids.tolist()
            at = [i for i, token in enumerate(ids) if token == video]
            if not turn:
                first, extra = extra, extra + len(at)
                for level in levels:
                    visual[level.name].append(embeds[level.name].embeds[at])
            for offset, position in enumerate(at):
                ids[position] = first + offset
            tasks.append(Task(GenerateRequest(events=events, question=question), embeds, ids))
    return Work(tasks, {name: torch.cat(parts) for name, parts in visual.items()}, rows)


def write_text_model(recipe: Recipe, level: str, work: Work, folder: Path) -> Path:
    """A Qwen2ForCausalLM of a level's language side with the extended vocabulary, in float32, with its tokenizer."""
    from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration, Qwen2ForCausalLM

    source = checkpoint_path(recipe.stage(level))
    full: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(
        source, dtype=torch.float32, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=True)
    config = full.config.text_config
    config.vocab_size, config.tie_word_embeddings = work.rows + len(work.visual[level]), False
    config.architectures = ["Qwen2ForCausalLM"]
    model = Qwen2ForCausalLM(config).eval()
    text, never = full.model.language_model, tokenizer.convert_tokens_to_ids("<video>")
    said = len(tokenizer)
    weights = {name: tensor for name, tensor in text.state_dict().items() if name != "embed_tokens.weight"}
    model.model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[:said] = text.embed_tokens.weight[:said]
        model.model.embed_tokens.weight[work.rows :] = work.visual[level]
        model.lm_head.weight[:] = full.lm_head.weight[never]
        model.lm_head.weight[:said] = full.lm_head.weight[:said]
    model.generation_config.eos_token_id = config.eos_token_id
    model.generation_config.pad_token_id = config.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tokens_of(ids: Sequence[int], end: int) -> list[int]:
    """An answer up to and including its end."""
    return list(ids[: ids.index(end) + 1]) if end in ids else list(ids)
