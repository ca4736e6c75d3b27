"""Loading: only what was asked for is read, every published naming style loads, and anything off is refused by name."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_checkpoint, tiny_tokenizer

from cascade_runtime.errors import ConfigError
from cascade_runtime.models import checkpoint as checkpoint_module
from cascade_runtime.models import load_checkpoint, loading


@pytest.fixture
def onevision(tmp_path, checkpoint):
    """A copy of the OneVision checkpoint that a test may spoil."""
    return shutil.copytree(checkpoint("llava_onevision"), tmp_path / "model")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rename_weights(directory, rename):
    file = directory / "model.safetensors"
    save_file({rename(name): tensor.clone() for name, tensor in load_file(file).items()}, file)


def state(model):
    parts = {"vision": model.vision, "projector": model.projector}
    tensors = {(p, n): t for p, part in parts.items() if part for n, t in part.module.state_dict().items()}
    if model.language:
        tensors |= {("language", n): t for n, t in model.language.named_weights()}
        tensors["language", "lm_head"] = model.language.lm_head.weight
    return tensors


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = "import sys, cascade_runtime.models; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@torch.inference_mode()
def test_a_part_loaded_alone_equals_the_full_load(pair, checkpoint):
    full, library = pair
    everything = state(full)
    assert set(full.weight_bytes) == {"language", "vision", "projector"}
    for part in full.weight_bytes:
        alone = load_checkpoint(checkpoint(full.family), parts=(part,))
        held = {"language": alone.language, "vision": alone.vision, "projector": alone.projector}
        assert [name for name, value in held.items() if value is not None] == [part]
        assert alone.weight_bytes == {part: full.weight_bytes[part]}
        assert alone.space == full.space
        mine = state(alone)
        assert set(mine) == {key for key in everything if key[0] == part}
        assert all(torch.equal(tensor, everything[key]) for key, tensor in mine.items())
    parameters = sum(p.numel() * 4 for n, p in library.named_parameters() if "image_tower" not in n)
    unused = 0 if full.family != "llava_next_video" else full.config.text_config.hidden_size * 4  # image_newline
    assert sum(full.weight_bytes.values()) == parameters - unused


def test_layers_give_their_weights_back_as_the_library_has_them(pair):
    full, library = pair
    theirs = {n: t for n, t in library.state_dict().items() if n.startswith("model.language_model.")}
    ours = {f"model.language_model.{n}": t for n, t in full.language.named_weights()}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda layer: setattr(layer.self_attn, "q_norm", torch.nn.LayerNorm(4)), "self_attn.q_norm"),
        (lambda layer: setattr(layer.mlp, "act_fn", torch.nn.GELU()), "silu"),
        (lambda layer: setattr(layer.self_attn.q_proj, "bias", None), "bias"),
    ],
)
def test_a_layer_of_another_kind_is_refused(onevision, change, says, monkeypatch):
    kept = loading.LanguageModel

    def changed(decoder, head, **facts):
        change(decoder.layers[1])
        return kept(decoder, head, **facts)

    monkeypatch.setattr(loading, "LanguageModel", changed)
    with pytest.raises(ConfigError, match=says):
        load_checkpoint(onevision, parts=("language",))


def test_buffers_no_checkpoint_stores_are_those_of_the_library(pair):
    full, library = pair
    theirs = dict(library.named_buffers())
    prefix = {"qwen2_vl": "visual", "video_llava": "video_tower"}.get(full.family, "vision_tower")
    ours = {f"model.language_model.{n}": b for n, b in full.language.decoder.named_buffers()}
    ours |= {f"model.{prefix}.{n}": b for n, b in full.vision.module.named_buffers()}
    assert len(ours) >= 2
    assert all(torch.equal(buffer, theirs[name]) for name, buffer in ours.items())


@pytest.mark.parametrize("part", ["language", "vision", "projector"])
def test_only_the_tensors_of_the_asked_part_are_read_from_shards(tmp_path, monkeypatch, part):
    directory = tiny_checkpoint("llava_onevision", tmp_path, max_shard_size="100KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    read, really_open = [], checkpoint_module._open

    class Watched:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            self.opened = really_open(self.file).__enter__()
            return self

        def __exit__(self, *_):
            self.opened.__exit__(None, None, None)

        def __getattr__(self, name):
            return getattr(self.opened, name)

        def get_tensor(self, name):
            read.append(name)
            return self.opened.get_tensor(name)

    monkeypatch.setattr(checkpoint_module, "_open", Watched)
    sharded = load_checkpoint(directory, parts=(part,))
    roots = {"language": ("language_model",), "vision": ("vision_tower",)}
    allowed = roots.get(part, ("multi_modal_projector", "image_newline"))
    assert read and all(name.removeprefix("model.").startswith(allowed) for name in read)
    single = load_checkpoint(tiny_checkpoint("llava_onevision", tmp_path / "one"), parts=(part,))
    assert all(torch.equal(tensor, state(sharded)[key]) for key, tensor in state(single).items())


STYLES = {
    "llava_onevision": [
        lambda n: n.replace("vision_tower.", "vision_tower.vision_model."),  # as published
        lambda n: (
            "lm_head.weight"
            if n.endswith("lm_head.weight")
            else "model." + n.replace("language_model.model", "language_model")
        ),
    ],
    "qwen2_vl": [
        lambda n: (
            n.replace("visual.", "model.visual.")
            if n.startswith("visual.")
            else n.replace("model.", "model.language_model.")
        ),
    ],
}


@pytest.mark.parametrize(("family", "style"), [(f, s) for f, styles in STYLES.items() for s in range(len(styles))])
def test_every_naming_style_gives_the_same_model(tmp_path, checkpoint, family, style):
    directory = shutil.copytree(checkpoint(family), tmp_path / "model")
    before = state(load_checkpoint(directory))
    rename_weights(directory, STYLES[family][style])
    after = state(load_checkpoint(directory))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())


def test_tied_heads_share_the_embedding_and_count_once(tmp_path):
    tied = load_checkpoint(tiny_checkpoint("llava_onevision", tmp_path / "tied", tied=True))
    plain = load_checkpoint(tiny_checkpoint("llava_onevision", tmp_path / "plain"))
    embedding = tied.language.decoder.embed_tokens.weight
    assert tied.language.lm_head.weight.data_ptr() == embedding.data_ptr()
    assert plain.weight_bytes["language"] - tied.weight_bytes["language"] == embedding.numel() * 4


def test_logits_are_cut_to_the_tokenizer_whatever_the_heads_rows(tmp_path):
    tokenizer = tiny_tokenizer("llava_onevision")
    for rows in (len(tokenizer), len(tokenizer) + 50):
        model = load_checkpoint(
            tiny_checkpoint("llava_onevision", tmp_path / str(rows), vocab_rows=rows), parts=["language"]
        )
        assert model.language.lm_head.weight.shape[0] == rows
        hidden = torch.randn(2, model.language.hidden_size)
        logits = model.language.logits(hidden)
        assert logits.shape == (2, len(tokenizer))
        assert torch.allclose(logits, (hidden @ model.language.lm_head.weight.T)[:, : len(tokenizer)], atol=1e-6)


def test_the_stored_type_is_widened_on_a_cpu_unless_told_otherwise(onevision):
    file = onevision / "model.safetensors"
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}, file)
    wide, narrow = load_checkpoint(onevision), load_checkpoint(onevision, dtype="bfloat16")
    assert {t.dtype for t in state(wide).values()} == {torch.float32}
    assert {t.dtype for t in state(narrow).values()} == {torch.bfloat16}
    assert narrow.language.decoder.rotary_emb.inv_freq.dtype == torch.float32
    assert 2 * sum(narrow.weight_bytes.values()) == sum(wide.weight_bytes.values())
    assert all(torch.equal(t.float(), state(wide)[key]) for key, t in state(narrow).items())
    assert wide.space == narrow.space


def test_end_tokens_come_from_the_generation_file_then_the_config(onevision):
    edit_json(onevision / "generation_config.json", eos_token_id=[2, 0])
    assert load_checkpoint(onevision, parts=["language"]).language.eos_token_ids == (2, 0)
    (onevision / "generation_config.json").unlink()
    assert load_checkpoint(onevision, parts=["language"]).language.eos_token_ids == (2,)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def drop(names, word):
    return {n: t for n, t in names.items() if word not in n}


def spoil_only_pickles(d):
    (d / "model.safetensors").unlink()
    (d / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def spoil_tensors(change):
    def spoil(d):
        save_file(
            {n: t.clone() for n, t in change(load_file(d / "model.safetensors")).items()}, d / "model.safetensors"
        )

    return spoil


def spoil_config(**changes):
    return lambda d: edit_json(d / "config.json", **changes)


def spoil_truncated(d):
    data = (d / "model.safetensors").read_bytes()
    (d / "model.safetensors").write_bytes(data[: len(data) // 2])


def spoil_index(weight_map):
    return lambda d: (d / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


SPOILS = {
    "only pickles": (spoil_only_pickles, "pickles never"),
    "missing tensor": (
        spoil_tensors(lambda t: drop(t, "layers.1.mlp.down_proj")),
        "missing.*decoder.layers.1.mlp.down_proj",
    ),
    "missing head": (spoil_tensors(lambda t: drop(t, "lm_head")), "missing.*lm_head"),
    "missing projector": (spoil_tensors(lambda t: drop(t, "multi_modal")), "missing.*mlp.linear_1"),
    "tensor too many": (
        spoil_tensors(lambda t: {**t, "vision_tower.encoder.layers.9.mlp.fc1.bias": torch.zeros(2)}),
        "unexpected.*layers.9",
    ),
    "unknown tensor": (spoil_tensors(lambda t: {**t, "adapter.weight": torch.zeros(2)}), "adapter.weight"),
    "wrong shape": (
        spoil_tensors(lambda t: {**t, "multi_modal_projector.linear_1.bias": torch.zeros(3)}),
        r"linear_1.bias \(3,\) for \(32,\)",
    ),
    "integer weights": (
        spoil_tensors(lambda t: {n: v.to(torch.int8) if "linear_1.bias" in n else v for n, v in t.items()}),
        "int8",
    ),
    "truncated weights": (spoil_truncated, "well-formed safetensors"),
    "shard outside": (spoil_index({"a": "../model.safetensors"}), "same directory"),
    "shard missing": (spoil_index({"a": "model-2.safetensors"}), "same directory"),
    "index lies": (spoil_index({"a": "model.safetensors"}), "the index names"),
    "index not names": (spoil_index([1]), "weight_map"),
    "other architecture": (spoil_config(architectures=["LlavaForConditionalGeneration"]), "architectures"),
    "other model type": (spoil_config(model_type="qwen2_vl"), "model_type"),
    "other text model": (spoil_config(text_config={"model_type": "gpt2"}), "text_config.model_type"),
    "quantised": (spoil_config(quantization_config={"bits": 4}), "quantization_config"),
    "impossible config": (spoil_config(vision_feature_select_strategy="some"), "config.json"),
    "config not JSON": (lambda d: (d / "config.json").write_text("{"), "config.json"),
    "config a list": (lambda d: (d / "config.json").write_text("[]"), "a JSON object"),
    "endless layers": (
        spoil_config(text_config={"model_type": "qwen2", "num_hidden_layers": 10**12}),
        "num_hidden_layers",
    ),
    "endless vision": (
        spoil_config(vision_config={"model_type": "siglip_vision_model", "num_hidden_layers": 10**12}),
        "num_hidden_layers",
    ),
    "oversized file": (lambda d: (d / "tokenizer.json").write_bytes(b" " * (1 + (64 << 20))), "at most 67108864 bytes"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer"),
    "broken tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer"),
    "no preprocessor": (lambda d: (d / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
    "end token outside": (lambda d: edit_json(d / "generation_config.json", eos_token_id=10**6), "eos_token_id"),
    "video token outside": (spoil_config(video_token_index=10**6), "video_token_id"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_a_bad_checkpoint_is_refused_by_name(onevision, name):
    spoil, says = SPOILS[name]
    spoil(onevision)
    with pytest.raises(ConfigError, match=says):
        load_checkpoint(onevision)


def test_code_that_a_checkpoint_brings_along_is_not_run(onevision):
    (onevision / "modeling_evil.py").write_text("raise SystemExit('run')")
    edit_json(
        onevision / "config.json", auto_map={"AutoConfig": "modeling_evil.Config", "AutoModel": "modeling_evil.Model"}
    )
    edit_json(onevision / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_evil.Tokenizer", None]})
    for part in ("text_config", "vision_config"):
        nested = json.loads((onevision / "config.json").read_text())[part]
        edit_json(onevision / "config.json", **{part: {**nested, "attn_implementation": "someone/kernel"}})
    model = load_checkpoint(onevision)
    assert model.language.decoder.config._attn_implementation == "sdpa"
    assert model.vision.module.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"parts": ["language", "tower"]}, "parts"),
        ({"parts": []}, "parts"),
        ({"parts": "language"}, "parts"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_an_impossible_request_is_refused(checkpoint, arguments, says):
    with pytest.raises(ConfigError, match=says):
        load_checkpoint(checkpoint("llava_onevision"), **arguments)


def test_a_directory_that_does_not_exist_is_not_looked_for_elsewhere(tmp_path):
    with pytest.raises(ConfigError, match="existing local directory"):
        load_checkpoint("llava-hf/llava-onevision-qwen2-0.5b-ov-hf")
    with pytest.raises(ConfigError, match="existing local directory"):
        load_checkpoint(tmp_path / "absent")


def test_an_event_family_is_fed_its_frames_as_they_are(tmp_path):
    activity = {"name": "activity", "frames": 2, "size": 56}
    directory = tiny_checkpoint("llava_onevision", tmp_path, event_representation=activity)
    edit_json(directory / "preprocessor_config.json", do_resize=False, do_normalize=False, do_rescale=False)
    model = load_checkpoint(directory, parts=("vision", "projector"))
    assert model.pixels.event_representation == ("activity", {"frames": 2, "size": 56})
    drawn = np.random.default_rng(0).normal(size=(2, 3, 56, 56)).astype(np.float32)
    pixels = model.pixels(drawn)
    assert np.array_equal(pixels.values.numpy(), drawn)
    assert model.projector.project(model.vision.encode(pixels)).shape == (2 * 4 + 1, 32)
