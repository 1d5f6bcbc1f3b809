"""Joining Ray, or starting it."""

import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import ray

from vbp.errors import InterruptedRunError, UsageError
from vbp.pipeline.on_ray import cluster

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup."
VERSIONS = (
    "Version mismatch: The cluster was started with:\n    Ray: 2.58.1\n    Python: 3.12.2\n"
    "This process on 10.0.0.9 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
)
REFUSED = (
    "W gcs_client.cc:210: Failed to get cluster ID: Unauthenticated: RPC error: InvalidAuthToken: missing or incorrect"
)


@pytest.fixture
def answers(monkeypatch):
    """What `ray.init` does, call by call: raises, or returns where there is None."""
    waiting = []

    def init(address, **options):
        error = waiting.pop(0)
        if error is not None:
            raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever other tests have started
    return waiting


def test_a_start_that_takes_too_long_is_tried_again(answers):
    answers += [Exception(LATE), Exception(LATE), None, None]
    cluster._start()
    assert answers == [None]


def test_but_not_for_ever(answers):
    answers += [Exception(LATE), Exception(LATE), FileNotFoundError(2, "No such file or directory"), None]
    with pytest.raises(InterruptedRunError, match="could not be started on this machine.*No such file.*same command"):
        cluster._start()
    assert answers == [None]


def test_another_failure_is_one(answers):
    answers += [ValueError("no such option"), None]
    with pytest.raises(ValueError, match="no such option"):
        cluster._start()
    assert answers == [None]


@pytest.fixture
def head(monkeypatch):
    """A port that takes connections and closes them, as a head does when it is spoken to in HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        yield address


def refusal():
    with pytest.raises(UsageError) as caught, cluster.connected():
        pass
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_head_that_is_gone_is_named_at_once(monkeypatch, answers):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    message = refusal()
    assert f"RAY_ADDRESS (={address}) cannot be reached" in message
    assert "unset RAY_ADDRESS to run on this machine" in message


def test_the_address_for_jobs_is_told_from_the_heads(monkeypatch, answers):
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        for address in (url, url.removeprefix("http://")):
            monkeypatch.setenv("RAY_ADDRESS", address)
            assert f"unset RAY_ADDRESS and give --address {url}" in refusal()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("error", "said", "words"),
    [
        (
            RuntimeError("Token authentication is enabled but no authentication token was found. Ensure that"),
            "",
            ["asks for a token, and this process has none", "RAY_AUTH_MODE=token", "~/.ray/auth_token"],
        ),
        (
            ConnectionError("Failed to connect to Ray cluster"),
            REFUSED,
            ["asks for a token, and this is not it, or none"],
        ),
        (
            RuntimeError(VERSIONS),
            "",
            ["runs Ray 2.58.1 and Python 3.12.2, and this process Ray 2.60.0 and Python 3.11.7", "--address"],
        ),
        (ConnectionError("some\nother cause"), "", ["cannot be joined: some other cause"]),
    ],
)
def test_why_a_cluster_was_not_joined(head, answers, monkeypatch, capfd, error, said, words):
    answers.append(error)
    before = cluster._init

    def init(address):
        os.write(2, said.encode())  # as the C++ core does
        before(address)

    monkeypatch.setattr(cluster, "_init", init)
    message = refusal()
    for word in (f"RAY_ADDRESS (={head})", *words):
        assert word in message
    assert capfd.readouterr().err == ""


def test_another_failure_shows_what_was_held_back(monkeypatch, answers, capfd):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    answers.append(ValueError("broken"))

    def init(address):
        os.write(2, b"the core says more")
        ray.init(address)

    monkeypatch.setattr(cluster, "_init", init)
    with pytest.raises(ValueError, match="broken"), cluster.connected():
        pass
    assert "the core says more" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["node_4d46", "node_77af"], False), (["ray.head.default", "gpu"], True), (["headgroup"], True), ([], False)],
)
def test_an_autoscaler_shows_in_the_names_of_nodes(monkeypatch, names, expected):
    monkeypatch.setattr(cluster, "_groups", lambda: names)
    assert cluster.grows() is expected


def test_a_status_of_another_form_promises_nothing(monkeypatch):
    monkeypatch.setattr(cluster, "_groups", lambda: {}["no such field"])
    assert cluster.grows() is False


def test_here_nobody_starts_nodes(ray_session):
    until = time.monotonic() + 60
    while True:  # the status is there some seconds after the start
        try:
            names = cluster._groups()
            break
        except (KeyError, ValueError):
            assert time.monotonic() < until
            time.sleep(0.5)
    assert len(names) == 1
    assert names[0].startswith("node_")
    assert cluster.grows() is False
    assert [node.cpus for node in cluster.nodes()] == [4]
    assert cluster.nodes()[0].labels["ray.io/node-id"] == ray.get_runtime_context().get_node_id()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://head:10001", "is for Ray's client.*--address"),
        ("head", "is no address of a cluster: give the head's address and port, like HEAD:6379"),
        ("head:port", "is no address of a cluster"),
        ("head:99999", "is no address of a cluster"),
        (":6379", "is no address of a cluster"),
        ("[::1", "is no address of a cluster"),
        ("localhost:1", "cannot be reached"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_at_once(monkeypatch, answers, address, words):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert re.search(words, refusal())


def test_auto_asks_for_a_cluster_of_this_machine(monkeypatch, answers, head):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray._private.services, "find_gcs_addresses", set)
    monkeypatch.setattr(ray._private.services, "find_bootstrap_address", lambda folder: None)
    assert "none runs here: start one" in refusal()
    monkeypatch.setattr(ray._private.services, "find_bootstrap_address", lambda folder: "127.0.0.1:1")  # a stale file
    assert re.search(r"RAY_ADDRESS \(=[\d.]+:1\) cannot be reached", refusal())  # of this host


def test_no_address_is_an_empty_one(monkeypatch, answers):
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setattr(cluster, "_start", lambda: answers.append("started"))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster.connected():
        assert answers == ["started"]


def test_the_size_of_the_store_is_for_a_ray_that_is_started_here(monkeypatch, answers):
    given = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda address, **options: given.append(options.get("object_store_memory")))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for size in (3 * 2**30, None):
        with cluster.connected(size):
            pass
    assert given == [3 * 2**30, None]


LONG = "AF_UNIX path length cannot exceed 107 bytes: /scratch/of/a/user/ray/session_x/sockets/plasma_store"
LARGE = (
    "Failed to upload package /home/me: Package size (700.06MiB) exceeds the maximum size of 512.00MiB. "
    "You can exclude large files using the 'excludes' option"
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(LONG),
            r"RAY_TMPDIR \(=/scratch/of/a/user\), is too long: .*/plasma_store, may have 107 bytes\. Set RAY_T",
        ),
        (RuntimeError(LARGE), r"too large: 700.06MiB of at most 512.00MiB\. .*\.rayignore"),
    ],
)
def test_what_will_never_start_is_no_reason_to_try_again(monkeypatch, answers, head, error, words):
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/of/a/user")
    answers += [error, error]
    assert re.search(words, refusal())
    monkeypatch.delenv("RAY_ADDRESS")
    assert re.search(words, refusal())
    assert answers == []
