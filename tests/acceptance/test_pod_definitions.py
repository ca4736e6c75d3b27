"""The pods that the KubeRay manifests describe against Kubernetes' own published schemas, strictly.

KubeRay's definitions hold Kubernetes' definition of a pod whole, and that is what most of their megabyte is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

kubernetes = pytest.importorskip("kubernetes_validate")

MANIFESTS = Path(__file__).parents[2] / "cluster" / "manifests"
VERSIONS = ["1.30", kubernetes.latest_version()]


def pods(name: str) -> dict[str, dict[str, Any]]:
    """Group -> its pod."""
    spec = yaml.safe_load((MANIFESTS / name).read_text())["spec"]
    cluster = spec.get("rayClusterConfig") or spec["rayClusterSpec"]
    groups = {"head": cluster["headGroupSpec"]} | {each["groupName"]: each for each in cluster["workerGroupSpecs"]}
    about = {"apiVersion": "v1", "kind": "Pod"}
    return {
        group: {**about, **each["template"], "metadata": {"name": group, **each["template"].get("metadata", {})}}
        for group, each in groups.items()
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "groups"), [("rayservice.yaml", 3), ("rayjob.yaml", 2)])
def test_every_pod_is_one_that_kubernetes_takes(name: str, groups: int, version: str) -> None:
    found = pods(name)
    assert len(found) == groups
    for pod in found.values():
        assert kubernetes.validate(pod, version, strict=True) == ".".join(version.split(".")[:2])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda container: container.update(imagePullPolcy="Always"),
        lambda container: container["resources"].update(limit={"cpu": 1}),
        lambda container: container.pop("name"),
        lambda container: container["ports"][0].update(containerPort="dashboard"),
        lambda container: container.update(env={"RAY_AUTH_MODE": "token"}),
    ],
    ids=["no such field", "no such kind of amount", "no name", "a port that is a word", "variables as a map"],
)
def test_what_kubernetes_refuses_is_refused_here(spoil: Callable[[Any], object]) -> None:
    pod = copy.deepcopy(pods("rayservice.yaml")["head"])
    spoil(pod["spec"]["containers"][0])
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(pod, VERSIONS[-1], strict=True)
