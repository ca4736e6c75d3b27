"""Tiny random checkpoints of the four families, saved as real ones are: weights, tokenizer and preprocessor file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.models.llava_next_video.configuration_llava_next_video import LlavaNextVideoConfig
from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoForConditionalGeneration
from transformers.models.llava_onevision.configuration_llava_onevision import LlavaOnevisionConfig
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionForConditionalGeneration
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLForConditionalGeneration
from transformers.models.video_llava.configuration_video_llava import VideoLlavaConfig
from transformers.models.video_llava.modeling_video_llava import VideoLlavaForConditionalGeneration
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

FAMILIES = ("llava_onevision", "llava_next_video", "video_llava", "qwen2_vl")
QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
QWEN_VL_SPECIALS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
]
LLAMA_SPECIALS = ["<unk>", "<s>", "</s>", "<image>", "<video>", "<pad>"]
CORPUS = [
    "What are the key elements in this scene? A bright square moves to the left, slowly, over a dark and noisy field.",
    "user assistant USER: ASSISTANT: system You are a helpful assistant. Describe the motion, rate and balance.",
]
VIDEO_TOKENS = {"qwen2_vl": ("<|image_pad|>", "<|video_pad|>")}


def tiny_tokenizer(family: str, *, vocab: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE (Qwen style) or a BPE with Llama's underline and byte fallback, trained on two sentences."""
    llama = family in ("llava_next_video", "video_llava")
    specials = LLAMA_SPECIALS if llama else QWEN_VL_SPECIALS if family == "qwen2_vl" else QWEN_SPECIALS
    if llama:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        if (
            family == "video_llava"
        ):  # Llama's older form: a space before every stretch of text; the newer: before the first
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        bytes_ = [f"<0x{value:02X}>" for value in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=max(vocab, 330), special_tokens=[*specials, *bytes_], show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if llama:  # bytes are ordinary tokens: only the control tokens may be parsed from text
        fields = json.loads(tokenizer.to_str())
        fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] in specials]
        tokenizer = Tokenizer.from_str(json.dumps(fields))
        from tokenizers.processors import TemplateProcessing

        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def tiny_checkpoint(
    family: str,
    directory: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 32,
    vocab_rows: int | None = None,
    tokenizer: Any = None,
    image_size: int = 56,
    tied: bool = False,
    event_representation: dict[str, Any] | None = None,
    max_shard_size: str = "1GB",
    scale: float = 1.0,
) -> Path:
    """Save a random model of `family` with its tokenizer and preprocessor file in `directory`; return the directory.

    vocab_rows: rows of embedding and head (default: the tokenizer's length plus 8, as real heads are padded).
    scale: multiplies the head's rows, since tiny random models otherwise choose by small margins.
    """
    directory = Path(directory)
    tokenizer = tokenizer or tiny_tokenizer(family)
    rows = vocab_rows or len(tokenizer) + 8
    model = _tiny_model(
        family, tokenizer, seed=seed, layers=layers, hidden=hidden, rows=rows, side=image_size, tied=tied
    )
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(directory)
    fields = _preprocessor(family, image_size)
    if event_representation is not None:
        fields["event_representation"] = event_representation
    (directory / "preprocessor_config.json").write_text(json.dumps(fields))
    return directory


def _tiny_model(
    family: str, tokenizer: Any, *, seed: int, layers: int, hidden: int, rows: int, side: int, tied: bool
) -> Any:
    heads = max(2, hidden // 16)
    text = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "vocab_size": rows,
        "max_position_embeddings": 4096,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.1,
        "tie_word_embeddings": tied,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 14,
    }
    image, video = (tokenizer.convert_tokens_to_ids(t) for t in VIDEO_TOKENS.get(family, ("<image>", "<video>")))
    torch.manual_seed(seed)
    if family == "qwen2_vl":
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
        visual = {"depth": 2, "embed_dim": 32, "hidden_size": hidden, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
        config = Qwen2VLConfig(
            vision_config=visual,
            text_config={**text, "rope_parameters": rope},
            image_token_id=image,
            video_token_id=video,
            tie_word_embeddings=tied,
        )
        return _settled(Qwen2VLForConditionalGeneration(config))
    common = {"image_token_index": image, "video_token_index": video, "tie_word_embeddings": tied}
    if family == "llava_onevision":
        siglip = {"model_type": "siglip_vision_model", "vision_use_head": False, **vision}
        config = LlavaOnevisionConfig(vision_config=siglip, text_config={"model_type": "qwen2", **text}, **common)
        return _settled(LlavaOnevisionForConditionalGeneration(config))
    clip = {"model_type": "clip_vision_model", **vision}
    llama = {"model_type": "llama", **text}
    if family == "llava_next_video":
        config = LlavaNextVideoConfig(vision_config=clip, text_config=llama, **common)
        return _settled(LlavaNextVideoForConditionalGeneration(config))
    return _settled(
        VideoLlavaForConditionalGeneration(VideoLlavaConfig(vision_config=clip, text_config=llama, **common))
    )


def _settled(model: Any) -> Any:
    """Every tensor random, biases and norms too, so that a swapped or forgotten one shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def _preprocessor(family: str, side: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    if family == "llava_onevision":
        return {**fields, "size": {"height": side, "width": side}}
    if family == "qwen2_vl":
        sizes = {"min_pixels": 28 * 28, "max_pixels": 56 * 84}
        return {**fields, **sizes, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
    return {**fields, **crop, "size": {"shortest_edge": side}}
