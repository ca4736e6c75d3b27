"""The manifests: against Ray's own schemas where the installed Ray has them, and those fields of KubeRay's that they
use. Its whole resource definitions are a megabyte and not part of Ray: `tests/acceptance/test_kuberay_definitions.py`.

Field names, types, required lists, enums, patterns and keys of lists were compared with KubeRay's published definitions
at two commits of its repository that have `authOptions` (in releases since 1.5.1): a RayService's at 02a80a6f2abf, in
helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml, and the spec of a RayJob as the template of a RayCronJob at
12cb11e48d1a, in ray-operator/config/crd/bases/ray.io_raycronjobs.yaml. Whether a release has exactly these was not
checked. Where the schema here asks for more than they do (an image, limits, a token, no negative number, one worker
group of a name), that is on purpose. Names, labels, Ray's parameters and how long a job is kept: as the operator itself
asks of these, in ray-operator/controllers/ray/utils/validation.go of the same repository at 0074504f84f2. Rules in CEL
stand in its Go types at managedBy, deletionStrategy and gcsFaultToleranceOptions, which the schema here has not: none
is asked of these manifests. Pods whole, by Kubernetes' schemas: `tests/acceptance/test_pod_definitions.py`.
"""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from resource_definitions import KEYS, validator

from cascade_runtime.errors import ConfigError
from cluster.label_selectors import meets
from cluster.placement import bundles
from cluster.serving.settings import ServerSettings

FOLDER = Path(__file__).parents[2] / "cluster" / "manifests"
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_WORD = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_PART = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
LABELS = {
    "type": "object",
    "propertyNames": {"pattern": rf"^((?=.{{1,253}}/){_PART}(\.{_PART})*/)?{_WORD}\Z"},
    "additionalProperties": {"type": "string", "pattern": rf"^({_WORD})?\Z"},
}
PARAMETERS = {**TEXTS, "propertyNames": {"not": {"enum": ["labels", "redis-username"]}}}
# A group says once what it has: as `resources` or among Ray's parameters.
_AMONG = [{"required": [name]} for name in ("num-cpus", "num-gpus", "memory", "resources")]
ONCE = {"not": {"required": ["resources"], "properties": {"rayStartParams": {"anyOf": _AMONG}}}}
COUNT = {"type": "integer", "format": "int32", "minimum": 0}
# The definitions take a minus, too, which no pod may ask for.
NUMBER = r"(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
AMOUNT = {
    "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}],
    "pattern": rf"^\+?{NUMBER}(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?{NUMBER}))?$",
}


def closed(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(items: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {"type": "array", "items": items, KEYS: list(keys)}


AMOUNTS = {"type": "object", "additionalProperties": AMOUNT}
VARIABLE = closed("name value", name={"type": "string"}, value={"type": "string"})
PORT = closed(
    "containerPort",
    name={"type": "string", "maxLength": 15},
    containerPort={"type": "integer", "minimum": 1, "maximum": 65535},
    protocol={"enum": ["TCP", "UDP", "SCTP"], "default": "TCP"},
)
MOUNT = closed("name mountPath", name={"type": "string"}, mountPath={"type": "string"}, readOnly={"type": "boolean"})
CONTAINER = closed(
    "name image resources",
    name={"type": "string"},
    image={"type": "string"},
    env=listed(VARIABLE, "name"),
    ports=listed(PORT, "containerPort", "protocol"),
    resources=closed("limits", limits=AMOUNTS, requests=AMOUNTS),
    volumeMounts=listed(MOUNT, "mountPath"),
)
VOLUME = closed(
    "name",
    name={"type": "string"},
    secret=closed("secretName", secretName={"type": "string"}),
    persistentVolumeClaim=closed("claimName", claimName={"type": "string"}),
)
POD = closed(
    "spec",
    spec=closed(
        "containers",
        containers=listed(CONTAINER, "name") | {"minItems": 1},
        volumes=listed(VOLUME, "name"),
    ),
)
# Earlier definitions require rayStartParams of every group, these two no longer do.
HEAD = ONCE | closed("rayStartParams template", template=POD, labels=LABELS, resources=TEXTS, rayStartParams=PARAMETERS)
WORKERS = ONCE | closed(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName={"type": "string"},
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    labels=LABELS,
    resources=TEXTS,
    rayStartParams=PARAMETERS,
    template=POD,
)
AUTH = closed("mode", mode={"enum": ["token"]})  # never "disabled"; secretName is not in KubeRay 1.5
CLUSTER = closed(
    "headGroupSpec authOptions rayVersion",
    rayVersion={"type": "string"},
    authOptions=AUTH,
    headGroupSpec=HEAD,
    workerGroupSpecs=listed(WORKERS, "groupName"),
)
NAME = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?\Z", "maxLength": 47}
META = closed("name", name=NAME)
SERVICE = closed("serveConfigV2 rayClusterConfig", serveConfigV2={"type": "string"}, rayClusterConfig=CLUSTER)
KEPT = {"properties": {"ttlSecondsAfterFinished": {"exclusiveMinimum": 0}}, "required": ["ttlSecondsAfterFinished"]}
ENDS = {"properties": {"shutdownAfterJobFinishes": {"const": True}}, "required": ["shutdownAfterJobFinishes"]}
JOB = {"if": KEPT, "then": ENDS} | closed(
    "entrypoint rayClusterSpec",
    entrypoint={"type": "string"},
    # a text in the definition; these are the modes that the operator knows
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER,
)
KINDS = {"RayService": SERVICE, "RayJob": JOB}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def check(manifest: dict[str, Any]) -> None:
    kinds = {"enum": list(KINDS)}
    spec = KINDS.get(manifest["kind"], {})
    whole = closed(
        "apiVersion kind metadata spec", apiVersion={"const": "ray.io/v1"}, kind=kinds, metadata=META, spec=spec
    )
    validator(whole).validate(manifest)


@pytest.mark.parametrize("name", ["rayservice.yaml", "rayjob.yaml"])
def test_kuberay_manifests_have_the_fields_of_its_api_and_ask_for_a_token(name: str) -> None:
    manifest = read(name)
    check(manifest)
    spec = manifest["spec"]
    cluster = spec.get("rayClusterConfig") or spec["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    for pod in pods:
        mounted = {mount["name"] for each in pod["spec"]["containers"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    open_door = copy.deepcopy(manifest)
    (open_door["spec"].get("rayClusterConfig") or open_door["spec"]["rayClusterSpec"])["authOptions"]["mode"] = (
        "disabled"
    )
    with pytest.raises(jsonschema.ValidationError):
        check(open_door)


def test_the_schema_refuses_what_kuberays_definitions_refuse_and_takes_whole_numbers_as_amounts() -> None:
    def changed(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> dict[str, Any]:
        manifest = read("rayservice.yaml")
        cluster = manifest["spec"]["rayClusterConfig"]
        change(cluster["headGroupSpec"]["template"]["spec"]["containers"][0], cluster["workerGroupSpecs"][0])
        return manifest

    for fine in (2, "500m", "1e3", "+.5Gi"):
        check(changed(lambda head, group, amount=fine: head["resources"]["limits"].update(cpu=amount)))
    for change in (
        *(
            lambda head, group, amount=amount: head["resources"]["limits"].update(memory=amount)
            for amount in ("4GB", "4 Gi", "", "-4Gi", -4, 0.5)
        ),
        *(lambda head, group, name=name: group.pop(name) for name in ("minReplicas", "maxReplicas", "groupName")),
        lambda head, group: group.update(maxReplicas=2**31),
        lambda head, group: group.update(groupName="edge"),
        lambda head, group: head["env"].append({"name": "OMP_NUM_THREADS", "value": "2"}),
        lambda head, group: head["ports"].append({"containerPort": 6379, "protocol": "TCP"}),
        lambda head, group: head["volumeMounts"].append({"name": "keys", "mountPath": "/etc/cascade"}),
    ):
        with pytest.raises(jsonschema.ValidationError):
            check(changed(change))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job["metadata"].update(name="Cascade"),
        lambda job: job["metadata"].update(name="cascade\n"),
        lambda job: job["metadata"].update(name="c" * 48),
        lambda job: job["spec"].update(shutdownAfterJobFinishes=False),
        lambda job: job["spec"].pop("shutdownAfterJobFinishes"),
    ],
    ids=["capital", "line", "long name", "kept and not ended", "kept"],
)
def test_the_schema_refuses_the_jobs_that_kuberays_operator_refuses(spoil: Callable[[Any], Any]) -> None:
    job = read("rayjob.yaml")
    check(job)
    spoil(job)
    with pytest.raises(jsonschema.ValidationError):
        check(job)


@pytest.mark.parametrize("where", ["head", "workers"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda group: group["labels"].update(tier="the core"),
        lambda group: group["labels"].update(tier="core\n"),
        lambda group: group["labels"].update({"a b": "core"}),
        lambda group: group["labels"].update({"a..b/c": "core"}),
        lambda group: group["labels"].update({f"{'a' * 254}/c": "core"}),
        lambda group: group["rayStartParams"].update(labels="tier=core"),
        lambda group: group.update(resources={"CPU": "4"}, rayStartParams={"num-cpus": "4"}),
    ],
    ids=["label's value", "label's line", "label's key", "no domain", "long domain", "labels", "twice"],
)
def test_the_schema_refuses_the_groups_that_kuberays_operator_refuses(where: str, spoil: Callable[[Any], Any]) -> None:
    job = read("rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    group = cluster["headGroupSpec"] if where == "head" else cluster["workerGroupSpecs"][0]
    group.update(resources={"CPU": "4"})
    group["labels"] |= {"ray.io/rack": "", f"{'a' * 253}/c": "core"}
    check(job)
    spoil(group)
    with pytest.raises(jsonschema.ValidationError):
        check(job)


def environment(pod: dict[str, Any]) -> dict[str, str]:
    (container,) = pod["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"]}


def test_every_node_has_the_limits_that_an_operator_must_set() -> None:
    from cluster.arenas import ARENAS, NO_CACHES, TUNABLES, VARIABLE
    from cluster.chaos.machines import QUICK
    from cluster.serving.proxy_limits import CALLBACK

    serve = {CALLBACK: "cluster.serving.proxy_limits.proxy_limits"}
    malloc = {VARIABLE: str(ARENAS), TUNABLES: NO_CACHES}
    health = {f"RAY_{name}": str(value) for name, value in QUICK.items()}
    service, job = read("rayservice.yaml")["spec"]["rayClusterConfig"], read("rayjob.yaml")["spec"]["rayClusterSpec"]
    for cluster, wanted in ((service, serve | malloc), (job, malloc)):
        head = environment(cluster["headGroupSpec"]["template"])
        assert head.items() >= (wanted | health).items()
        assert len(cluster["workerGroupSpecs"]) >= 1
        for group in cluster["workerGroupSpecs"]:
            assert environment(group["template"]).items() >= wanted.items()
    module, _, name = serve[CALLBACK].rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
    for kind, wanted in (("head", serve | malloc | health), ("worker", serve | malloc)):
        (command,) = [each for each in read("ray_up.yaml")[f"{kind}_start_ray_commands"] if "ray start" in each]
        before = command.partition("ulimit")[0]  # what the shell has exported by the time that Ray is started
        told = subprocess.run(["sh", "-c", f"{before} env"], env={}, capture_output=True, text=True, check=True)
        exported = dict(line.split("=", 1) for line in told.stdout.splitlines())
        assert exported.items() >= ({"RAY_AUTH_MODE": "token"} | wanted).items()


def test_rays_version_is_the_one_that_is_pinned() -> None:
    pinned = next(
        line.partition("==")[2].strip()
        for line in (FOLDER.parents[1] / "constraints.txt").read_text().splitlines()
        if line.startswith("ray==")
    )
    assert read("rayservice.yaml")["spec"]["rayClusterConfig"]["rayVersion"] == pinned
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pinned


def test_the_service_is_one_that_serve_and_the_server_accept(tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    manifest = read("rayservice.yaml")
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    deploy = ServeDeploySchema.model_validate(config)
    assert deploy.applications[0].import_path == "cluster.serve_app:app"
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-twenty-letters\n")
    args = {**config["applications"][0]["args"], "api_key_file": str(keys)}
    settings = ServerSettings.from_args(args)
    settings.check_address(config["http_options"]["host"])
    with pytest.raises(ConfigError, match="API key"):
        ServerSettings.from_args({"recipe": "three_level"}).check_address(config["http_options"]["host"])


def test_the_services_nodes_have_room_for_its_stages() -> None:
    manifest = read("rayservice.yaml")
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    args = dict(config["applications"][0]["args"])
    del args["api_key_file"]
    recipe = ServerSettings.from_args(args).load_recipe()
    cluster = manifest["spec"]["rayClusterConfig"]
    groups = [(cluster["headGroupSpec"], 1), *((group, group["replicas"]) for group in cluster["workerGroupSpecs"])]
    left = []
    for group, replicas in groups:
        cpus = float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        left += [[group["labels"], cpus - 0.2] for _ in range(replicas)]  # a Serve replica and a proxy may be there
    for bundle in sorted(bundles(recipe), key=lambda bundle: not bundle.labels):
        home = next(node for node in left if meets(bundle.labels, node[0]) and node[1] >= bundle.resources["CPU"])
        home[1] -= bundle.resources["CPU"]


def test_the_job_runs_a_command_that_exists() -> None:
    from cluster import cli

    command = read("rayjob.yaml")["spec"]["entrypoint"].split()
    assert command[0] == "cascade"
    args = cli._parser().parse_args(command[1:])
    assert (args.target, args.recipe) == ("ray", "three_level")


def test_ray_up_takes_the_cluster_and_every_node_asks_for_a_token() -> None:
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read("ray_up.yaml")
    jsonschema.validate(config, json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text()))
    validate_config(prepare_config(copy.deepcopy(config)))
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        started = [command for command in config[name] if "ray start" in command]
        assert len(started) == 1 and "export RAY_AUTH_MODE=token" in started[0]
    assert any(remote.endswith(".ray/auth_token") for remote in config["file_mounts"])
    tiers = {name: node["labels"]["tier"] for name, node in config["available_node_types"].items()}
    assert tiers == {"head": "control", "core_gpu": "core", "edge": "edge"}
