"""The KubeRay manifests against KubeRay's own resource definitions, strictly: a field that they do not list is refused.

    CASCADE_KUBERAY_CRDS=FOLDER python -m pytest tests/acceptance/test_kuberay_definitions.py

FOLDER holds ray.io_rayservices.yaml and ray.io_rayjobs.yaml, as in helm-chart/kuberay-operator/crds of a release. They
are megabytes and not part of this project. Keys of lists and sizes of integers are checked, too. A field that is both
required and has a default must be there. Rules in CEL (`x-kubernetes-validations`) are the API server's to judge.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from resource_definitions import KEYS, validator

MANIFESTS = Path(__file__).parents[2] / "cluster" / "manifests"
CRDS = os.environ.get("CASCADE_KUBERAY_CRDS")
KINDS = {"rayservice.yaml": "ray.io_rayservices.yaml", "rayjob.yaml": "ray.io_rayjobs.yaml"}


def closed(schema: Any) -> Any:
    """The same schema, refusing what it does not list, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    inner = {
        key: {name: closed(each) for name, each in value.items()} if key == "properties" else closed(value)
        for key, value in schema.items()
    }
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner.setdefault("additionalProperties", False)
    if schema.get("nullable"):
        inner = {"anyOf": [{"type": "null"}, inner]}
    return inner


def read(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def problems(manifest: dict[str, Any], definition: dict[str, Any]) -> list[str]:
    """What a definition refuses of a manifest: where, and why."""
    version = next(each for each in definition["spec"]["versions"] if each["name"] == "v1")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", definition["spec"]["names"]["kind"])
    assert version["served"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    found = validator(schema).iter_errors(manifest)
    return sorted(f"{error.json_path}: {error.message[:200]}" for error in found)


@pytest.mark.skipif(not CRDS, reason="no definitions: set CASCADE_KUBERAY_CRDS to a folder with KubeRay's")
@pytest.mark.parametrize("name", KINDS)
def test_manifests_are_what_kuberays_definitions_take_and_nothing_else_is(name: str) -> None:
    manifest, definition = read(MANIFESTS / name), read(Path(CRDS or "") / KINDS[name])
    assert problems(manifest, definition) == []
    cluster = "rayClusterConfig" if "rayClusterConfig" in manifest["spec"] else "rayClusterSpec"

    def refused(change: Any) -> bool:
        changed = copy.deepcopy(manifest)
        change(changed["spec"], changed["spec"][cluster])
        return bool(problems(changed, definition))

    assert refused(lambda spec, rays: spec.update(servConfigV2="x"))
    assert refused(lambda spec, rays: rays.pop("headGroupSpec"))
    assert refused(lambda spec, rays: rays["authOptions"].update(mode="tokens"))
    assert refused(lambda spec, rays: rays["workerGroupSpecs"][0].update(replicas="1"))
    assert refused(lambda spec, rays: rays["workerGroupSpecs"][0].update(replicas=2**31))
    assert refused(lambda spec, rays: rays["workerGroupSpecs"][0].pop("minReplicas"))

    def head(rays: Any) -> Any:
        return rays["headGroupSpec"]["template"]["spec"]["containers"][0]

    assert refused(lambda spec, rays: head(rays).update(images="x"))
    assert refused(lambda spec, rays: head(rays)["resources"]["limits"].update(memory="4GB"))
    assert refused(lambda spec, rays: head(rays)["ports"].append({"containerPort": 6379, "protocol": "TCP"}))


def test_a_schema_is_closed_at_every_level_that_lists_its_fields_and_keyed_lists_have_each_key_once() -> None:
    text = {"type": "string"}
    inner = {"type": "object", "properties": {"a": text}}
    number = {"type": "integer", "format": "int32"}
    port = {"type": "object", "properties": {"port": number, "protocol": {**text, "default": "TCP"}}}
    schema = {
        "type": "object",
        "properties": {
            "inner": inner,
            "each": {"type": "array", "items": inner},
            "open": {**inner, "x-kubernetes-preserve-unknown-fields": True},
            "map": {"type": "object", "additionalProperties": text},
            "any": {"type": "object"},
            "none": {**text, "nullable": True},
            "keyed": {"type": "array", "items": port, KEYS: ["port", "protocol"]},
        },
    }
    check = validator(closed(schema))
    for fine in ({"inner": {"a": "x"}}, {"open": {"b": 1}}, {"map": {"b": "x"}}, {"any": {"b": 1}}, {"none": None}):
        assert check.is_valid(fine)
    assert check.is_valid({"keyed": [{"port": 1}, {"port": 2}, {"port": 1, "protocol": "UDP"}]})
    for ports in ([{"port": 1}, {"port": 1}], [{"port": 1}, {"port": 1, "protocol": "TCP"}], [{"port": 2**31}]):
        assert not check.is_valid({"keyed": ports})
    for wrong in ({"b": 1}, {"inner": {"b": "x"}}, {"each": [{"b": "x"}]}, {"map": {"b": 1}}, {"none": 1}):
        assert not check.is_valid(wrong)
