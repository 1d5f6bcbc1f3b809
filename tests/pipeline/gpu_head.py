"""A program for `test_gpu_head.py`: a head without CPUs and GPUs, and a worker node that claims a GPU it has not."""

import os
import sys

from ray.cluster_utils import Cluster

from vbp.errors import VBPError
from vbp.pipeline import RunConfig, run
from vbp.pipeline.hardware import Hardware
from vbp.pipeline.observer import Observer
from vbp.pipeline.on_ray import cluster


class Printing(Observer):
    """Tells what it is told."""

    def note(self, text):
        sys.stdout.write(f"note: {text}\n")


def stub(device, node):
    """As if torch saw a GPU on the worker's node."""
    return Hardware(node=node, device=device, processor="Stub GPU", bfloat16=True)


def try_run(config):
    try:
        run(config, Printing())
    except VBPError as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")


def main():
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    try:
        nodes.add_node(num_cpus=4, num_gpus=1)
        os.environ["RAY_ADDRESS"] = nodes.address
        source, output, weights = sys.argv[1:]
        config = RunConfig(input=source, output=output, weights=weights, size=32, runner="ray")
        try_run(config)
        cluster.look = stub
        try_run(config)
    finally:
        nodes.shutdown()


if __name__ == "__main__":
    main()
