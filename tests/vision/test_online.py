"""An adapter that learns from what the gate refuses: it comes closer, within bounds, and harms no answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cascade_runtime.config import load_recipe
from cascade_runtime.errors import ConfigError
from cascade_runtime.models.event_encoder import Adapter
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.front_end import FrontEnd
from cascade_runtime.vision.gate import decide, frame_cosines
from cascade_runtime.vision.online import OnlineUpdater

SOURCE, TARGET = 6, 10
GATE = load_recipe("light_heavy").gate


@pytest.fixture
def adapter() -> Adapter:
    torch.manual_seed(0)
    return Adapter(source_dim=SOURCE, target_dim=TARGET, hidden=16, source_space="events-a", target_space="tower-b")


def _packet(data: torch.Tensor, space: str) -> VisualFeatures:
    return VisualFeatures.from_tensor(data, space=space, transforms=(), source="00")


def _stream(count: int, seed: int = 1):
    """Recordings of two frames: event features, and the dense features that go with them."""
    generator = torch.Generator().manual_seed(seed)
    way = torch.randn(SOURCE, TARGET, generator=torch.Generator().manual_seed(7))
    for _ in range(count):
        event = torch.randn(2, 4, SOURCE, generator=generator)
        yield _packet(event, "events-a"), _packet(event @ way, "tower-b")


def _cosine(adapter: Adapter) -> float:
    with torch.no_grad():
        found = [frame_cosines(adapter(e.tensor()), d.tensor()) for e, d in _stream(8, seed=2)]
    return sum(sum(each) for each in found) / (2 * len(found))


def _verdict(adapter: Adapter, event: VisualFeatures, dense: VisualFeatures):
    with torch.no_grad():
        return decide(GATE, frame_cosines(adapter(event.tensor()), dense.tensor()))


def test_refused_frames_teach_the_adapter(adapter: Adapter) -> None:
    before, updater = _cosine(adapter), OnlineUpdater(adapter, memory=32, every=8, steps=20, learning_rate=5e-3)
    for event, dense in _stream(40):
        updater.observe(event, dense, _verdict(adapter, event, dense))
    assert before < 0.3 and _cosine(adapter) > 0.8
    assert updater.updates >= 3 and updater.refused >= 8 * updater.updates
    with torch.no_grad():  # the gate's head learns what its adapter is worth
        event, dense = next(_stream(1, seed=3))
        told = adapter.predicted_cosine(event.tensor()).mean()
    assert float(told) == pytest.approx(sum(frame_cosines(adapter(event.tensor()), dense.tensor())) / 2, abs=0.3)


def test_memory_is_bounded_and_accepted_frames_alone_change_nothing(adapter: Adapter) -> None:
    updater = OnlineUpdater(adapter, memory=5, every=1000)
    before = {name: weight.clone() for name, weight in adapter.state_dict().items()}
    for event, dense in _stream(20):
        refused = decide(GATE, [0.1, 0.1])
        assert not updater.observe(event, dense, refused)
        updater.observe(event, dense, decide(GATE, [0.9, 0.9]))
    assert updater.frames == 10 and updater.refused == 40 and not updater.updates
    assert all(torch.equal(weight, before[name]) for name, weight in adapter.state_dict().items())


def test_an_update_that_harms_is_undone(adapter: Adapter) -> None:
    updater = OnlineUpdater(adapter, every=2, steps=20, learning_rate=5e-3)
    for event, dense in _stream(10):  # first learn it well
        updater.observe(event, dense, decide(GATE, [0.1, 0.1]))
    before = {name: weight.clone() for name, weight in adapter.state_dict().items()}
    wild = OnlineUpdater(adapter, every=2, steps=3, learning_rate=50.0)
    event, dense = next(_stream(1))
    assert not wild.observe(event, dense, decide(GATE, [0.1, 0.1]))
    assert wild.undone == 1 and wild.updates == 0
    assert all(torch.equal(weight, before[name]) for name, weight in adapter.state_dict().items())


@pytest.mark.parametrize("field", ["memory", "every", "steps"])
def test_sizes_without_bounds_are_refused(adapter: Adapter, field: str) -> None:
    sizes: Any = {field: 0}
    with pytest.raises(ConfigError, match=field):
        OnlineUpdater(adapter, **sizes)


class _Heard:
    def __init__(self) -> None:
        self.count = 0

    def observe(self, features: object, dense: object, decision: object) -> bool:
        self.count += 1
        return False


@pytest.mark.parametrize(
    ("changed", "heard"), [([], 1), (['cascade.mode="aligned"'], 0), (['gate.policy="predicted"'], 0)]
)
def test_it_hears_only_where_dense_features_verify_and_answers_cannot_change(changed, heard) -> None:
    from toy_family import toy_events

    from cascade_runtime.vision.adapter_verifier import AdapterVerifier
    from cascade_runtime.vision.event_branch import EventBranch

    recipe = load_recipe("light_heavy", changed)
    front = FrontEnd(recipe, EventBranch.load(recipe), AdapterVerifier.load(recipe))
    listener: Any = _Heard()
    front.updater = listener
    front.see(toy_events())
    assert listener.count == heard


def test_a_recipe_asks_for_it_in_process_and_in_a_pipeline_and_answers_stay_the_targets(tmp_path) -> None:
    from threaded_pipeline import threaded_pipeline
    from toy_family import toy_recipe, toy_requests, write_toy_family

    from cascade_runtime.engine import Engine

    family, requests = write_toy_family(tmp_path), toy_requests(9, max_tokens=6)
    recipe = toy_recipe(family, ["noisy"], gate={"accept": 1.0, "reject": 1.0, "learns": True})
    expected = [answer.token_ids for answer in Engine.load(toy_recipe(family, [])).generate(requests)]
    engine = Engine.load(recipe)
    assert [answer.token_ids for answer in engine.generate(requests)] == expected
    with threaded_pipeline(recipe) as controller:
        assert [controller.generate(request).token_ids for request in requests] == expected
        stage = controller.stages["adapter"].stage
        assert "learn" in {span[0] for span in stage.moments(9)}
        for updater, told in ((engine.front_end.updater, engine.front_end.verifier), (stage._updater, stage.verifier)):
            assert updater.adapter is told.adapter and updater.refused >= 9
            assert updater.updates + updater.undone == updater.refused // updater.every >= 1


@pytest.mark.parametrize(
    ("recipe", "changes", "says"),
    [
        ("light_heavy", ["gate.learns=1"], "gate.learns.*true or false"),
        ("light_heavy", ["gate.learns=true", 'gate.policy="spot"'], "gate.learns.*full"),
        ("light_heavy", ["gate.learns=true", 'cascade.mode="aligned"'], "gate.learns.*strict"),
        ("heavy", ["gate.learns=true"], r"gate.learns.*\[adapter\]"),
    ],
)
def test_it_is_refused_where_it_could_change_an_answer(recipe: str, changes: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_recipe(recipe, changes)
