"""What hinders a run is one clear sentence before any work."""

import threading

import pytest

from tests.faultproxy import Fault
from vbp.errors import UsageError
from vbp.pipeline import RunConfig, run
from vbp.pipeline import preflight as module
from vbp.pipeline.preflight import preflight, preflight_on_a_worker, preflight_on_all_nodes, unseen
from vbp.storage.files import Folder


@pytest.fixture
def places(s3_server, fault_proxy):
    """INPUT with one image and OUTPUT, both behind the proxy."""
    folder = Folder(s3_server.new_url(), fault_proxy.storage_options)
    folder.write("photos/cat/a.jpg", b"1")
    return folder.uri("photos"), folder.uri("out"), fault_proxy.storage_options


def test_it_asks_for_little_and_leaves_nothing(places, fault_proxy):
    fault_proxy.reset()
    preflight(*places, "here")
    assert fault_proxy.counts == {"LIST": 1, "GET": 2, "PUT": 1, "DELETE": 1}
    assert Folder(*places[1:]).list() == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            Fault("denied", methods="PUT"),
            "OUTPUT .*cannot write .*AccessDenied 403.*grant list and read on INPUT, all on OUT",
        ),
        (Fault("denied", methods="GET"), "INPUT .*cannot read .*a.jpg.*AccessDenied 403"),
        (Fault("denied", methods="LIST"), "INPUT .*cannot list .*AccessDenied 403"),
        (Fault("denied", methods="DELETE"), "OUTPUT .*cannot delete .*AccessDenied 403"),
        (Fault("expired"), "INPUT .*token has expired.*Renew .*AWS_ACCESS_KEY_ID"),
        (Fault("moved"), "INPUT .*another region.*Set AWS_REGION"),
    ],
    ids=str,
)
def test_what_the_store_refuses(places, fault_proxy, fault, message):
    fault_proxy.faults = [fault]
    with pytest.raises(UsageError, match=message):
        preflight(*places, "here")


def test_missing_buckets(places, s3_server):
    _, output, options = places
    with pytest.raises(UsageError, match="INPUT .*here.*bucket does not exist.*Check the bucket's name"):
        preflight("s3://vbp-nowhere/photos", output, options, "here")
    with pytest.raises(UsageError, match="OUTPUT .*bucket does not exist"):
        preflight("photos", "s3://vbp-nowhere/out", options, "here")


def test_wrong_and_missing_credentials(places, monkeypatch):
    places[2]["s3://"]["endpoint_url"] += "/"  # opened anew
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verywrong")
    with pytest.raises(UsageError, match="signature.*Renew or set the credentials") as caught:
        preflight(*places, "here")
    assert "verywrong" not in str(caught.value)
    places[2]["s3://"]["endpoint_url"] += "/"
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UsageError, match="no credentials found.*AWS_ACCESS_KEY_ID"):
        preflight(*places, "here")


def test_a_wrong_scheme(places):
    options = {"s3://": {"endpoint_url": places[2]["s3://"]["endpoint_url"].replace("http", "https")}}
    with pytest.raises(UsageError, match="INPUT .*is the endpoint http.*Check endpoint_url"):
        preflight(*places[:2], options, "here")


def test_a_refused_run_begins_nothing(places, fault_proxy, network_file):
    source, output, options = places
    fault_proxy.faults = [Fault("denied", methods="PUT")]
    config = {"size": 64, "weights": network_file, "runner": "local", "storage_options": options}
    with pytest.raises(UsageError, match="OUTPUT .*cannot be used from this process"):
        run(RunConfig(input=source, output=output, **config))
    assert Folder(output, options).list() == []


def test_a_worker_is_asked(ray_session, places, fault_proxy):
    preflight_on_a_worker(*places)
    fault_proxy.faults = [Fault("expired")]
    with pytest.raises(UsageError, match="^INPUT .*from a Ray worker.*expired") as caught:
        preflight_on_a_worker(*places)
    assert "Traceback" not in str(caught.value)


def test_what_is_there_is_seen_and_what_comes_late_too(tmp_path):
    late = tmp_path / "late"
    threading.Timer(0.3, late.touch).start()
    places = {"INPUT": ("in", str(tmp_path)), "OUTPUT": ("out", str(late))}
    assert unseen(places, 30) == []
    assert unseen(places | {"--weights": ("w", str(tmp_path / "nothing"))}, 0) == ["--weights"]


@pytest.fixture
def on_another_node(ray_session, monkeypatch):
    """The tests have one machine: its own workers stand for those of another node."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    assert module._other_nodes() == {}
    monkeypatch.setattr(module, "_other_nodes", lambda: {node: "10.0.0.2"})
    monkeypatch.setattr(module, "LOOK_SECONDS", 0)


def test_folders_that_all_nodes_share_are_fine(on_another_node, photos, network_file, tmp_path):
    preflight_on_all_nodes(RunConfig(input=str(photos), output=str(tmp_path / "out"), weights=network_file))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["INPUT", "OUTPUT", "--weights"])
def test_a_folder_of_one_machine_is_refused(on_another_node, photos, tmp_path, monkeypatch, name):
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)  # where the workers are not, so that they see another folder of that name
    places = {"INPUT": str(photos), "OUTPUT": str(tmp_path / "out"), "--weights": "random"}
    places[name] = "/proc/self/cwd/x"
    config = RunConfig(input=places["INPUT"], output=places["OUTPUT"], weights=places["--weights"])
    with pytest.raises(UsageError) as caught:
        preflight_on_all_nodes(config)
    assert str(caught.value) == (
        f"{name} (=/proc/self/cwd/x) is of one machine, and node 10.0.0.2 does not see what is there: "
        "use a bucket, or a file system that all nodes share under the same path."
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
