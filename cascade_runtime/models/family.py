"""The bundled family: three LLaVA-OneVision models of one tokenizer, an event encoder and an adapter, small enough
for one CPU core.

    light     1 layer    drafts
    mid       5 layers   verifies drafts, drafts for heavy        bundled.family_path("heavy") -> a directory in the
    heavy    20 layers   the target                               Hugging Face format, written by training/

Depth, not width, is what a step costs on a CPU (benchmarks/steps.py), so it is what sets the 20 : 5 : 1 apart; width
is shared. The SigLIP tower looks at two 64 x 64 `activity` frames, which become 33 visual tokens. As in the published
family `lm_head` has more rows than the tokenizer has entries, and light's has fewer than the others'. Run as a
program it writes the family with random weights:

    python -m cascade_runtime.models.family OUT_DIR
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken as SpecialToken
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.utils import logging as hub_logging

from cascade_runtime.errors import ConfigError
from cascade_runtime.models.bundled import LAYERS
from cascade_runtime.models.event_encoder import Adapter, EventEncoder, save_adapter, save_event_encoder

FRAMES, FRAME_SIZE, PATCH = 2, 64, 8
TOWER_WIDTH = 128
VISUAL_TOKENS = FRAMES * (FRAME_SIZE // PATCH // 2) ** 2 + 1
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
_ROW_MULTIPLE = {"light": 8, "mid": 64, "heavy": 128}
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>{% endif %}{% endfor %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}\n{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PLAIN_TEXT = (
    "What are the key elements in this scene? Which way does it move, how fast, how many shapes are there and where?",
    "A single square crosses the view to the upper left at a moderate speed. Most of the events are ON events.",
    "The whole scene shifts to the right because the camera moves; the event rate is high and spread over the view.",
)


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1500) -> Tokenizer:
    """A byte-level BPE tokenizer learnt from `texts`: any text encodes, with Qwen's special tokens at the end of the
    ids.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([SpecialToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def model_config(member: str, tokenizer: Tokenizer) -> LlavaOnevisionConfig:
    """The configuration of light, mid or heavy. Raises ConfigError for another name."""
    if member not in LAYERS:
        raise ConfigError("family member", member, f"one of {', '.join(LAYERS)}")
    multiple = _ROW_MULTIPLE[member]
    rows = (tokenizer.get_vocab_size() // multiple + 1) * multiple
    ids: dict[str, Any] = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    vision = SiglipVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=3 * TOWER_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=FRAME_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=rows,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=LAYERS[member],
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_grid_pinpoints=[[FRAME_SIZE, FRAME_SIZE]],
        tie_word_embeddings=True,
    )


def build_model(member: str, tokenizer: Tokenizer) -> LlavaOnevisionForConditionalGeneration:
    """A model with random weights, float32; the seed is the caller's torch seed."""
    model = LlavaOnevisionForConditionalGeneration(model_config(member, tokenizer))
    torch.nn.init.normal_(model.model.image_newline, std=0.02)
    model.generation_config.eos_token_id = tokenizer.token_to_id("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.token_to_id("<|endoftext|>")
    return model


def save_model(model: LlavaOnevisionForConditionalGeneration, tokenizer: Tokenizer, directory: str | Path) -> None:
    """Write a checkpoint as the Hugging Face format has it, weights in float16. The model itself is not changed."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    half = {name: value.detach().half() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    hub_logging.disable_progress_bar()
    try:
        model.save_pretrained(directory, state_dict=half)  # the head is tied to the embedding, so stored once
    finally:
        hub_logging.enable_progress_bar()
    (directory / "model.safetensors").chmod(0o644)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    _write_json(directory / "config.json", {**config, "dtype": "float16"})
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
            "chat_template": _CHAT_TEMPLATE,
        },
    )
    _write_json(
        directory / "preprocessor_config.json",
        {
            "do_resize": False,
            "do_rescale": False,
            "do_normalize": False,
            "size": {"height": FRAME_SIZE, "width": FRAME_SIZE},
            "image_mean": [0.0, 0.0, 0.0],
            "image_std": [1.0, 1.0, 1.0],
            "event_representation": {"name": "activity", "frames": FRAMES, "size": FRAME_SIZE},
        },
    )


def read_model(directory: str | Path) -> tuple[LlavaOnevisionForConditionalGeneration, Tokenizer]:
    """A saved member as the library's own unchanged class, float32, with its tokenizer: for training and evaluation."""
    hub_logging.disable_progress_bar()
    try:
        model = LlavaOnevisionForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True
        )
    finally:
        hub_logging.enable_progress_bar()
    return model.eval(), Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))


def write_random_family(directory: str | Path, *, seed: int = 0) -> None:
    """The whole family with random weights: everything loads and runs, and every answer is noise."""
    from cascade_runtime.models.loading import load_checkpoint

    torch.manual_seed(seed)
    directory = Path(directory)
    tokenizer = build_tokenizer(_PLAIN_TEXT * 4, vocab_size=512)
    heavy = build_model("heavy", tokenizer)
    save_model(heavy, tokenizer, directory / "heavy")
    for member in ("light", "mid"):
        model = build_model(member, tokenizer)
        model.model.vision_tower.load_state_dict(heavy.model.vision_tower.state_dict())
        save_model(model, tokenizer, directory / member)
    encoder = EventEncoder(size=FRAME_SIZE, patch=PATCH)
    space = save_event_encoder(encoder, directory / "event_encoder")
    tower = load_checkpoint(directory / "heavy", parts=("vision",)).vision
    assert tower is not None
    adapter = Adapter(
        source_dim=encoder.feature_size,
        target_dim=TOWER_WIDTH,
        hidden=2 * TOWER_WIDTH,
        source_space=space,
        target_space=tower.space,
    )
    save_adapter(adapter, directory / "adapter")


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m cascade_runtime.models.family OUT_DIR")
    write_random_family(sys.argv[1])
    print(f"wrote a family with random weights to {sys.argv[1]}")
