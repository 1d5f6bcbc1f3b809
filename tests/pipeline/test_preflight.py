"""What would make a run fail is reported before any work, in one message."""

import pytest

from tests.faultproxy import Fault
from vbp.errors import UsageError
from vbp.pipeline import RunConfig, run
from vbp.pipeline.preflight import preflight
from vbp.storage.files import Folder


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
