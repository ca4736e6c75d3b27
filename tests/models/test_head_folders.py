"""Folders of heads: what is saved is read again, and what is wrong with a folder is named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_heads import BLOCKS, VOCAB, WIDTH, toy_eagle, toy_exits, toy_medusa, toy_target

from cascade_runtime.errors import ConfigError
from cascade_runtime.models.bundled import family_path
from cascade_runtime.models.eagle import EagleHead, EagleNet, load_eagle, load_eagle_net, save_eagle
from cascade_runtime.models.exits import ExitHeads, exit_layers, load_exits, save_exits
from cascade_runtime.models.head_folder import EAGLE_KINDS, HEAD_KINDS, bundled_head, head_kind
from cascade_runtime.models.loading import load_checkpoint
from cascade_runtime.models.medusa import MedusaHeads, load_medusa, save_medusa
from cluster.cli_heads import KINDS


@pytest.fixture(scope="module")
def language():
    return toy_target()


@pytest.fixture
def folders(tmp_path):
    save_medusa(toy_medusa(), tmp_path / "medusa")
    save_exits(toy_exits(), tmp_path / "exits")
    for kind in EAGLE_KINDS:
        save_eagle(toy_eagle(kind), tmp_path / kind)
    return tmp_path


def load(path, language):
    loaders = {"medusa": load_medusa, "exits": load_exits}
    return loaders.get(head_kind(path), load_eagle)(path, language)


def test_what_is_saved_is_read_again_in_half_precision(folders, language) -> None:
    others = {"medusa": (toy_medusa(), load_medusa), "exits": (toy_exits(), load_exits)}
    for kind, (made, loader) in (others | {kind: (toy_eagle(kind), load_eagle_net) for kind in EAGLE_KINDS}).items():
        assert head_kind(folders / kind) == kind
        read = loader(folders / kind, language).state_dict()
        assert read.keys() == made.state_dict().keys()
        assert all(torch.equal(read[name], value.half().float()) for name, value in made.state_dict().items())
    assert load_eagle(folders / "eagle3", language).blocks == BLOCKS
    assert load_eagle(folders / "eagle", language).blocks == ()


def test_medusa_adds_one_silu_layer_to_the_state(language) -> None:
    heads = MedusaHeads(hidden_size=2, vocab_size=4, heads=2)
    assert torch.equal(heads(torch.tensor([[1.0, -2.0]])), torch.tensor([[[1.0, -2.0]] * 2]))  # untrained
    with torch.no_grad():
        heads.weight[1] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        heads.bias[1] = torch.tensor([3.0, 0.0])
    silu = torch.nn.functional.silu
    wanted = torch.tensor([1.0, -2.0]) + silu(torch.tensor([-2.0 + 3.0, 1.0]))
    assert torch.allclose(heads(torch.tensor([[1.0, -2.0]]))[0, 1], wanted)


def test_an_exit_adds_one_gate_to_the_normed_state() -> None:
    exits = toy_exits()
    state = torch.randn(3, WIDTH)
    for number, at in ((0, 0), (1, 2)):
        assert exits.blocks[number] == at
        weights = dict(exits.named_parameters())
        normed = state / (state.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"norms.{number}.weight"]
        inner = normed @ weights[f"ups.{number}.weight"].T + weights[f"ups.{number}.bias"]
        wanted = normed + torch.nn.functional.silu(inner) @ weights[f"downs.{number}.weight"].T
        assert torch.allclose(exits.read(number, state), wanted, atol=1e-5)
    new = ExitHeads(hidden_size=WIDTH, vocab_size=VOCAB, intermediate_size=20, draft_layers=1, middle_layers=2)
    assert torch.allclose(new.read(1, state), new.norms[1](state))  # untrained
    assert [exit_layers(layers) for layers in (80, 20, 4, 2)] == [(10, 20), (3, 5), (1, 2), (1, 2)]


@pytest.mark.parametrize("kind", EAGLE_KINDS)
def test_the_head_over_slots_computes_what_its_module_computes(kind, language) -> None:
    net = toy_eagle(kind)
    head = EagleHead(net)
    cache = head.new_cache(3, 20)
    cache.held[0].normal_()
    torch.manual_seed(3)
    taken, embeds = torch.randn(2, 7, WIDTH), torch.randn(2, 7, WIDTH)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    states, sees = torch.randn(2, 7, WIDTH), torch.arange(1, 8)[None]
    also = {"known": states, "sees": sees} if net.across is not None else {}
    wanted = net(taken, embeds, mask=mask, positions=torch.arange(7), **also)
    for start, stop in ((0, 4), (4, 5), (5, 7)):
        count = stop - start
        out = head.forward(
            taken[:, start:stop].flatten(0, 1),
            embeds[:, start:stop].flatten(0, 1),
            slots=[2, 0],
            starts=[start, start],
            counts=[count, count],
            positions=[*range(start, stop)] * 2,
            cache=cache,
        )
        if head.across is not None:
            out = head.across(out.view(2, count, WIDTH), states, sees[:, start:stop]).flatten(0, 1)
        assert torch.allclose(out.view(2, count, WIDTH), wanted[:, start:stop], atol=1e-4)
        assert torch.allclose(head.read(out), net.read(out), atol=1e-5)
    states = torch.randn(5, 3 * WIDTH if kind == "eagle3" else WIDTH)
    assert torch.allclose(head.taken(states), net.taken(states), atol=1e-4)
    assert head.nbytes == 4 * sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hidden_size": 64}, "hidden_size"),
        ({"vocab_size": 25}, "vocab_size"),
        ({"vocab_size": "24"}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"layers": 3}, "config.json"),
        ({"model_type": "cascade_adapter"}, "model_type"),
    ],
)
def test_another_targets_head_and_a_wrong_field_are_refused_by_name(folders, language, kind, change, field) -> None:
    path = folders / kind / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=field):
        load(folders / kind, language)


@pytest.mark.parametrize(
    ("kind", "change", "field"),
    [
        ("medusa", {"heads": 0}, "heads"),
        ("medusa", {"heads": 2}, "weight"),
        ("exits", {"draft_layers": 0}, "draft_layers"),
        ("exits", {"draft_layers": 3}, "draft_layers"),
        ("exits", {"middle_layers": 4}, "middle_layers"),
        ("exits", {"middle_layers": "3"}, "middle_layers"),
        ("exits", {"intermediate_size": 21}, "ups"),
        ("eagle", {"num_attention_heads": 3}, "num_attention_heads"),
        ("eagle", {"blocks": [0, 1, 2]}, "blocks"),
        ("eagle", {"steps": 2}, "steps"),
        ("hivis", {"steps": 0}, "steps"),
        ("hivis", {"steps": "2"}, "steps"),
        ("hivis", {"steps": 3}, "step"),
        ("eagle3", {"blocks": [0, 1]}, "blocks"),
        ("eagle3", {"blocks": [0, 1, 4]}, "blocks"),
        ("eagle3", {"blocks": "abc"}, "blocks"),
        ("eagle3", {"intermediate_size": 48}, "mlp"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(folders, language, kind, change, field) -> None:
    path = folders / kind / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=field):
        load(folders / kind, language)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_tensors_that_are_missing_too_many_or_not_numbers_are_refused(folders, language, kind) -> None:
    file = folders / kind / "model.safetensors"
    whole = load_file(file)
    name = sorted(whole)[0]
    wrongs = (
        ({key: value for key, value in whole.items() if key != name}, name),
        ({**whole, "more": torch.zeros(2)}, "more"),
        ({**whole, name: torch.zeros(3)}, name),
        ({**whole, name: whole[name].to(torch.int32)}, "finite"),
        ({**whole, name: torch.full_like(whole[name], torch.nan)}, "finite"),
    )
    for tensors, told in wrongs:
        save_file(tensors, file)
        with pytest.raises(ConfigError, match=told):
            load(folders / kind, language)
    file.write_bytes(b"\x08\0\0\0\0\0\0\0garbage")
    with pytest.raises(ConfigError, match="safetensors"):
        load(folders / kind, language)
    file.unlink()
    with pytest.raises(ConfigError, match="safetensors"):
        load(folders / kind, language)


def test_a_medusa_folder_is_no_eagle(folders, language) -> None:
    with pytest.raises(ConfigError, match="cascade_medusa"):
        load_eagle(folders / "medusa", language)
    with pytest.raises(ConfigError, match="blocks"):
        EagleNet(
            "eagle3",
            hidden_size=32,
            vocab_size=24,
            intermediate_size=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            blocks=(1, 2),
        )


def test_the_bundled_heads_are_small_and_fit_the_bundled_heavy() -> None:
    assert KINDS == HEAD_KINDS
    language = load_checkpoint(family_path("heavy"), parts=("language",)).language
    assert language is not None
    for kind in HEAD_KINDS:
        assert sum(file.stat().st_size for file in bundled_head(kind).iterdir()) < 1.5e6
        assert head_kind(bundled_head(kind)) == kind
        load(bundled_head(kind), language)
    with pytest.raises(ConfigError, match="hydra"):
        bundled_head("hydra")
