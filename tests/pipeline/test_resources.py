"""The rules by which a cluster is divided; no Ray."""

import math

import pytest

from vbp.errors import UsageError
from vbp.pipeline.resources import Node, Resources, divide, parse_labels, shortage

HEAD, SMALL, LARGE, GPU = Node(), Node(cpus=2), Node(cpus=16), Node(cpus=8, gpus=1)


@pytest.mark.parametrize(
    ("nodes", "workers", "count", "claim", "threads"),
    [
        ([SMALL], None, 2, 0.5, 1),
        ([SMALL], 1, 1, 1, 2),
        ([SMALL], 9, 2, 0.5, 1),
        ([HEAD, SMALL, SMALL], None, 4, 0.5, 1),
        ([SMALL, SMALL], 1, 1, 1, 2),  # a worker cannot be larger than a node
        ([SMALL, LARGE], 3, 3, 3, 6),
        ([GPU], 2, 2, 2, 4),
    ],
)
def test_cpus_are_shared_out_and_half_of_them_claimed(nodes, workers, count, claim, threads):
    given = divide(nodes, "cpu", workers)
    assert (given.workers, given.num_cpus, given.num_gpus, given.threads) == (count, claim, 0, threads)


@pytest.mark.parametrize(
    ("nodes", "workers", "count", "share"),
    [
        ([GPU], None, 1, 1),
        ([GPU, SMALL, GPU], None, 2, 1),
        ([GPU], 4, 4, 0.25),
        ([GPU, GPU], 1, 1, 1),
        ([GPU, GPU], 3, 3, 1 / 2),
        ([GPU, GPU], 5, 5, 1 / 3),
        ([Node(cpus=64, gpus=8)], 12, 12, 1 / 2),
    ],
)
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_gpus_are_taken_one_for_each_worker_or_shared(nodes, workers, count, share, device):
    given = divide(nodes, device, workers)
    assert (given.workers, given.num_gpus) == (count, share)
    assert sum(int(node.gpus * (1 / share + 1e-9)) for node in nodes) >= count  # all of them find room


@pytest.mark.parametrize(
    ("nodes", "workers", "claim", "codec"),
    [
        ([GPU], None, 1, 1),
        ([GPU], 2, 1, 1),
        ([GPU], 4, 0, 0.5),  # 8 CPUs are not three for each of four
        ([Node(cpus=16, gpus=1), Node(cpus=2, gpus=1)], None, 0, 0.5),
        ([Node(gpus=1), LARGE], None, 0, 0.5),
        ([HEAD, Node(cpus=16, gpus=4)], None, 1, 1),
    ],
)
def test_where_there_are_cpus_for_it_each_process_claims_the_core_that_it_keeps_busy(nodes, workers, claim, codec):
    given = divide(nodes, "cuda", workers)
    assert (given.num_cpus, given.codec_cpus) == (claim, codec)


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "count", "most"),
    [
        ([HEAD], "cuda", None, 1, math.inf),
        ([HEAD, SMALL], "cuda", 8, 1, 8),
        ([GPU, GPU], "cuda", 8, 2, 8),
        ([GPU, GPU], "auto", None, 2, math.inf),
        ([GPU, GPU], "cuda", 1, 1, 1),
    ],
)
def test_where_nodes_come_gpus_need_not_be_there_yet(nodes, device, workers, count, most):
    given = divide(nodes, device, workers, grows=True)
    assert (given.workers, given.at_most, given.num_gpus) == (count, most, 1)
    assert given.num_cpus == (1 if GPU in nodes else 0)  # of nodes that are not there nobody knows their CPUs


def test_only_workers_with_a_gpu_have_several_batches_in_hand():
    assert (divide([GPU], "cuda", None).calls, divide([SMALL], "cpu", None).calls) == (3, 1)


def test_where_nodes_come_cpu_workers_claim_their_whole_share():
    given = divide([HEAD], "auto", None, grows=True)
    assert (given.workers, given.at_most, given.num_cpus, given.threads) == (1, math.inf, 1, 1)
    given = divide([HEAD, SMALL, SMALL], "cpu", 2, grows=True)
    assert (given.workers, given.at_most, given.num_cpus, given.threads) == (2, 2, 2, 2)


def test_on_a_fixed_cluster_all_gpus_that_come_are_taken_and_no_more_cpus():
    assert divide([GPU], "auto", None).at_most == math.inf
    assert divide([GPU], "auto", 4).at_most == 4
    assert divide([SMALL], "auto", None).at_most == 0


@pytest.mark.parametrize(
    ("nodes", "device", "words"),
    [
        ([HEAD], "cpu", "No node of the Ray cluster has a CPU for work: start a worker node"),
        ([HEAD], "auto", "No node of the Ray cluster has a CPU for work"),
        ([HEAD, Node(gpus=1)], "cuda", "has GPUs but no CPU, and images are read, decoded and written on CPUs"),
    ],
)
def test_a_run_that_could_only_wait_is_refused(nodes, device, words):
    with pytest.raises(UsageError, match=words):
        divide(nodes, device, None)


LABELLED = [
    Node(cpus=8, gpus=4, labels={"ray.io/accelerator-type": "A100", "zone": "a"}),
    Node(cpus=8, gpus=2, labels={"ray.io/accelerator-type": "L4", "zone": "b"}),
    Node(cpus=8),
]


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("ray.io/accelerator-type=A100", 4),
        ("ray.io/accelerator-type=!A100", 2),
        ("ray.io/accelerator-type=in(A100,L4)", 6),
        ("ray.io/accelerator-type=!in(L4, T4), zone=a", 4),
        (None, 6),
    ],
)
def test_labels_choose_among_nodes(text, gpus):
    given = divide(LABELLED, "cuda", None, labels=parse_labels(text))
    assert given.workers == gpus
    assert given.labels == parse_labels(text)


def test_labels_that_no_node_has_are_refused_with_those_that_there_are():
    with pytest.raises(UsageError, match=r"fits no node of the Ray cluster: there is zone=a, zone=b\."):
        divide(LABELLED, "cuda", None, labels={"zone": "c"})
    with pytest.raises(UsageError, match="no node has a label of that name"):
        divide(LABELLED, "cuda", None, labels={"market": "spot"})
    with pytest.raises(UsageError, match="and fits --node-labels"):
        divide(LABELLED, "cuda", None, labels={"zone": "!in(a,b)"})
    assert divide(LABELLED, "cuda", None, labels={"zone": "c"}, grows=True).workers == 1


@pytest.mark.parametrize("text", ["A100", "=A100", "a=", "a=in(b", "a=b,,c=d", "a=b c"])
def test_labels_of_another_form_are_refused(text):
    with pytest.raises(UsageError, match="--node-labels"):
        parse_labels(text)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (divide([GPU], "auto", None), "1 worker with 1 GPU each, more as nodes come"),
        (divide([HEAD], "cuda", 8, grows=True), "1 worker with 1 GPU each, up to 8 as nodes come"),
        (divide([GPU], "cuda", 4), "4 workers with 0.25 GPU each"),
        (divide([SMALL], "cpu", None), "2 workers with 1 CPU thread each"),
        (
            divide(LABELLED, "cuda", 1, labels={"zone": "a"}),
            "1 worker with 1 GPU each, on nodes with zone=a",
        ),
    ],
)
def test_what_was_decided_is_one_line(given, text):
    assert str(given) == text


def test_without_a_gpu_auto_takes_cpus_and_cuda_is_refused():
    assert divide([SMALL], "auto", None).num_gpus == 0
    with pytest.raises(UsageError, match="--device cuda needs a GPU, and no node of the Ray cluster has one"):
        divide([HEAD, SMALL], "cuda", None)


def test_a_shortage_is_told_in_numbers():
    given = Resources(workers=3, num_cpus=0, num_gpus=1, threads=0)
    assert shortage(given, [HEAD, GPU, SMALL], Node(cpus=1.5)) == (
        "3 workers claim 0 CPUs and 3 GPUs, and tasks beside them 0.5 CPU each; "
        "the cluster has 10 CPUs and 1 GPUs, of which 1.5 CPUs and 0 GPUs are free"
    )
