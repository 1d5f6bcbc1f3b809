"""The files for `ray up` through Ray's own preparation and checks, and what those let pass."""

import copy
import json
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FOLDER = Path(__file__).parents[2] / "cluster" / "launcher"
CLOUDS = ("aws", "gcp", "azure")
NODE_FIELDS = {
    "aws": {"InstanceType", "ImageId", "IamInstanceProfile", "InstanceMarketOptions", "BlockDeviceMappings"},
    "gcp": {"machineType", "disks", "serviceAccounts", "scheduling", "metadata"},
    "azure": {"azure_arm_parameters"},
}
"""What we use of the open ``node_config``: EC2's run_instances, Google's instances.insert, Ray's ARM template."""
ARM_PARAMETERS = {"vmSize", "imagePublisher", "imageOffer", "imageSku", "imageVersion", "osDiskSize", "priority"}


def load(cloud):
    return yaml.safe_load((FOLDER / f"{cloud}.yaml").read_text())


def faults(config):
    """What Ray says against a cluster file, as written and as filled up, and what a run of ours needs of it."""
    schema = json.loads((resources.files("ray.autoscaler") / "ray-schema.json").read_text())
    found = [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(config)]
    if found:
        return found
    try:
        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    except Exception as error:  # each of its checks has another type
        return [f"{type(error).__name__}: {error}"]
    return [*rules(prepared)]


def rules(config):
    types, head, cloud = config["available_node_types"], config["head_node_type"], config["provider"]["type"]
    if types[head]["resources"].get("CPU") != 0 or types[head]["max_workers"] != 0:
        yield "the head must take no work, and have no twin"
    if not any("--num-cpus=0" in command for command in config["head_start_ray_commands"]):
        yield "ray start on the head must say the same"
    if sum(node["max_workers"] for node in types.values()) > config["max_workers"]:
        yield "max_workers is smaller than what the node types may sum up to"
    for name, node in types.items():
        if node["min_workers"] > node["max_workers"]:
            yield f"{name}: min_workers <= max_workers"
        if node["node_config"].keys() - NODE_FIELDS[cloud]:
            yield f"{name}: unknown {node['node_config'].keys() - NODE_FIELDS[cloud]}"
        if node["node_config"].get("azure_arm_parameters", {}).keys() - ARM_PARAMETERS:
            yield f"{name}: unknown ARM parameters"
        if name != head and cloud == "aws" and "IamInstanceProfile" not in node["node_config"]:
            yield f"{name}: without an instance profile it cannot reach the bucket"
        if (name != head) != is_spot(node["node_config"]):
            yield f"{name}: workers on spot, the head not"
    if "/home/ray/.ray/auth_token" not in config["file_mounts"]:
        yield "the nodes need the token"
    if not any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"]):
        yield "the job API must not listen to the world"
    if config["provider"]["cache_stopped_nodes"]:
        yield "stopped nodes go on costing"


def is_spot(node):
    return (
        node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or node.get("scheduling", {}).get("provisioningModel") == "SPOT"
        or node.get("azure_arm_parameters", {}).get("priority") == "Spot"
    )


@pytest.mark.parametrize("cloud", CLOUDS)
def test_files_are_valid(cloud):
    config = load(cloud)
    assert config["provider"]["type"] == cloud
    assert faults(config) == []


def test_no_other_file_lies_there():
    assert {path.name for path in FOLDER.iterdir()} == {f"{cloud}.yaml" for cloud in CLOUDS}


BREAKS = {
    "a misspelt field": lambda config: config.update(max_worker=config.pop("max_workers")),
    "a field of old files": lambda config: config.update(min_workers=1),
    "no resources": lambda config: gpu(config).pop("resources"),
    "a string for a number": lambda config: gpu(config).update(max_workers="4"),
    "a head that is no node type": lambda config: config.update(head_node_type="haed"),
    "more wanted than allowed": lambda config: gpu(config).update(min_workers=13),
    "min over max": lambda config: gpu(config).update(min_workers=5),
    "types over the sum": lambda config: gpu(config).update(max_workers=40),
    "work on the head": lambda config: config["available_node_types"]["head"]["resources"].update(CPU=8),
    "no image": lambda config: config["docker"].pop("image"),
    "no token": lambda config: config.update(file_mounts={}),
    "an unknown machine field": lambda config: gpu(config)["node_config"].update(instanceType="x"),
    "on demand": lambda config: [
        gpu(config)["node_config"].pop(field, None)
        for field in ("InstanceMarketOptions", "scheduling", "azure_arm_parameters")
    ],
}


def gpu(config):
    return config["available_node_types"]["gpu"]


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_file_is_noticed(name, cloud):
    config = copy.deepcopy(load(cloud))
    BREAKS[name](config)
    assert faults(config)
