"""KubeRay's documents against its closed schema, and the rules that its operator checks beyond that."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "cluster" / "kuberay"
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "kuberay.json").read_text())
CLOUDS = ("eks", "gke", "aks")
BYTES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "": 1}


def load(name):
    (document,) = yaml.safe_load_all((FOLDER / name).read_text())
    return document


def cluster_spec(document):
    return document["spec"]["rayClusterSpec"] if document["kind"] == "RayJob" else document["spec"]


def faults(document):
    """Every sentence that schema and operator would say against a RayJob or RayCluster."""
    if document["kind"] == "RayCluster":
        whole = {**document, "kind": "RayJob", "spec": {"rayClusterSpec": document["spec"]}}
    else:
        whole = document
    found = [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(whole)]
    return found or [*rules(document)]


def rules(document):
    """What KubeRay's operator refuses although the schema lets it pass, and what a run of ours needs."""
    spec = cluster_spec(document)
    if document["apiVersion"] != "ray.io/v1":
        yield "apiVersion must be ray.io/v1"
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", document["metadata"]["name"]):
        yield "the name must be a DNS label of at most 47 characters"
    if spec["authOptions"]["mode"] != "token":
        yield "the job API runs any code: it needs a token"
    if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "the head must take no work"
    if spec["autoscalerOptions"]["version"] != "v2" or not spec["enableInTreeAutoscaling"]:
        yield "autoscaler v2 needs enableInTreeAutoscaling"
    images = set()
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod, parameters = group["template"]["spec"], group["rayStartParams"]
        container = pod["containers"][0]
        images.add(container["image"])
        if "resources" in group and parameters.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
            yield "resources stand in rayStartParams or in resources, not in both"
        if pod.get("restartPolicy", "Never") != "Never":
            yield "autoscaler v2 needs restartPolicy Never"
        if pod.get("serviceAccountName") != "vbp":
            yield "every pod needs the identity that may read the bucket"
        yield from memory_rules(pod, container, int(parameters["object-store-memory"]))
    if len(images) != 1:
        yield f"head and workers must share one image, not {sorted(images)}"
    for group in spec["workerGroupSpecs"]:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"{group['groupName']}: minReplicas <= replicas <= maxReplicas"
    if document["kind"] == "RayJob":
        yield from deletion_rules(document["spec"])


def memory_rules(pod, container, store):
    """Ray's object store fits into /dev/shm, and that into the memory of the container, which it counts towards."""
    volumes = {volume["name"]: volume["emptyDir"].get("sizeLimit") for volume in pod["volumes"]}
    (shm,) = (mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm")
    if not store <= in_bytes(volumes[shm]) <= in_bytes(container["resources"]["limits"]["memory"]) / 2:
        yield "object-store-memory <= /dev/shm <= half of the memory"


def in_bytes(text):
    number, unit = re.fullmatch(r"(\d+)([KMGT]i)?", text).groups("")
    return int(number) * BYTES[unit]


def deletion_rules(spec):
    order = ["DeleteWorkers", "DeleteCluster", "DeleteSelf"]
    if spec.get("shutdownAfterJobFinishes"):
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    latest = {}
    for rule in spec["deletionStrategy"]["deletionRules"]:
        if rule["policy"] == "DeleteWorkers":
            yield "DeleteWorkers does not go with the autoscaler"
        condition = rule["condition"]
        if ("jobStatus" in condition) == ("jobDeploymentStatus" in condition):
            yield "a condition names either jobStatus or jobDeploymentStatus"
        key = condition.get("jobStatus") or condition.get("jobDeploymentStatus")
        step = (order.index(rule["policy"]), condition["ttlSeconds"])
        if key in latest and not (latest[key][0] < step[0] and latest[key][1] <= step[1]):
            yield f"{key}: the cluster goes before the RayJob itself"
        latest[key] = step
    if not {"SUCCEEDED", "FAILED", "Failed"} <= latest.keys():
        yield "whatever ends the job must take the cluster down"


def patched(document, cloud):
    """The document as kustomize builds it with the component of this cloud."""
    component = load(f"{cloud}/kustomization.yaml")
    assert (component["apiVersion"], component["kind"]) == ("kustomize.config.k8s.io/v1alpha1", "Component")
    (patch,) = (entry["patch"] for entry in component["patches"] if entry["target"] == {"kind": document["kind"]})
    result = copy.deepcopy(document)
    for change in yaml.safe_load(patch):
        assert change.keys() == {"op", "path", "value"}
        assert change["op"] == "add"
        *way, last = change["path"].removeprefix("/").split("/")
        place = result
        for step in way:
            place = place[int(step) if isinstance(place, list) else step]
        if last == "-":
            place.append(change["value"])
        else:
            assert last not in place, f"{change['path']} is there already"
            place[last] = change["value"]
    return result


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_documents_are_valid(name):
    assert faults(load(name)) == []


def test_both_have_the_same_nodes():
    assert cluster_spec(load("rayjob.yaml")) == cluster_spec(load("raycluster.yaml"))


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_every_cloud_gives_a_valid_document_with_an_identity(name, cloud):
    document = patched(load(name), cloud)
    assert faults(document) == []
    gpu = cluster_spec(document)["workerGroupSpecs"][0]
    assert gpu["template"]["spec"]["nodeSelector"]
    assert "nodeSelector" not in cluster_spec(document)["headGroupSpec"]["template"]["spec"]
    account = load(f"{cloud}/serviceaccount.yaml")
    assert (account["apiVersion"], account["kind"], account["metadata"]["name"]) == ("v1", "ServiceAccount", "vbp")
    (annotation,) = account["metadata"]["annotations"]
    assert annotation in (
        "eks.amazonaws.com/role-arn",
        "iam.gke.io/gcp-service-account",
        "azure.workload.identity/client-id",
    )


def test_kustomization_names_what_there_is():
    kustomization = load("kustomization.yaml")
    assert kustomization["kind"] == "Kustomization"
    for name in kustomization["resources"]:
        assert (FOLDER / name).is_file()
    for name in kustomization["components"]:
        assert (FOLDER / name / "kustomization.yaml").is_file()


def test_the_entrypoint_is_a_command_of_ours():
    from click.testing import CliRunner

    from vbp.cli import main

    words = load("rayjob.yaml")["spec"]["entrypoint"].split()
    assert words[0] == "vbp"
    assert CliRunner().invoke(main, [*words[1:], "--help"]).exit_code == 0


BREAKS = {
    "a misspelt field": lambda job: job["spec"].update(backOffLimit=job["spec"].pop("backoffLimit")),
    "a number for a string": lambda job: head(job)["rayStartParams"].update({"num-cpus": 0}),
    "a string for a number": lambda job: worker(job).update(replicas="4"),
    "a field of another level": lambda job: job["spec"].update(terminationGracePeriodSeconds=1),
    "an unknown deletion policy": lambda job: rule(job).update(policy="DeleteAll"),
    "work on the head": lambda job: head(job)["rayStartParams"].update({"num-cpus": "8"}),
    "no token": lambda job: cluster_spec(job)["authOptions"].update(mode="disabled"),
    "more replicas than allowed": lambda job: worker(job).update(replicas=5),
    "pods that restart": lambda job: worker(job)["template"]["spec"].update(restartPolicy="Always"),
    "another image": lambda job: worker(job)["template"]["spec"]["containers"][0].update(image="vbp:0.0.9"),
    "a store larger than shm": lambda job: worker(job)["rayStartParams"].update({"object-store-memory": "99000000000"}),
    "a name with a dot": lambda job: job["metadata"].update(name="v.b.p"),
    "two ways to end": lambda job: job["spec"].update(shutdownAfterJobFinishes=True),
    "workers deleted": lambda job: rule(job).update(policy="DeleteWorkers"),
    "self before cluster": lambda job: job["spec"]["deletionStrategy"]["deletionRules"][1]["condition"].update(
        ttlSeconds=-1
    ),
    "a failure that keeps the cluster": lambda job: job["spec"]["deletionStrategy"]["deletionRules"].pop(),
    "the old autoscaler": lambda job: cluster_spec(job)["autoscalerOptions"].update(version="v1"),
    "no identity": lambda job: worker(job)["template"]["spec"].pop("serviceAccountName"),
}


def head(job):
    return cluster_spec(job)["headGroupSpec"]


def worker(job):
    return cluster_spec(job)["workerGroupSpecs"][0]


def rule(job):
    return job["spec"]["deletionStrategy"]["deletionRules"][0]


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_document_is_noticed(name):
    job = load("rayjob.yaml")
    BREAKS[name](job)
    assert faults(job)
