"""Each store with a failing server: what is retried, and what the final error says."""

import urllib.error
import urllib.request

import pytest

from tests.faultproxy import Fault
from vbp.storage.files import Folder


@pytest.fixture(params=["obstore", "s3fs"])
def shaky(request, fault_proxy, s3_server):
    """A folder behind the proxy; the proxy is its attribute."""
    options = fault_proxy.storage_options if request.param == "obstore" else fault_proxy.s3fs_options
    folder = Folder(s3_server.new_url(), options)
    folder.proxy = fault_proxy
    return folder


@pytest.mark.parametrize("kind", ["slowdown", "throttled", "failed", "reset", "lost"])
def test_a_write_is_repeated_until_it_is_there(shaky, kind):
    shaky.proxy.faults = [Fault(kind, methods="PUT", times=2)]
    shaky.write("a", b"1" * 1000)
    assert shaky.proxy.counts[kind] == 2
    assert shaky.read("a") == b"1" * 1000


@pytest.mark.parametrize("kind", ["slowdown", "throttled", "failed", "reset", "truncated"])
def test_a_read_is_repeated_until_it_is_whole(shaky, kind):
    shaky.write("a", bytes(range(256)) * 100)
    shaky.proxy.faults = [Fault(kind, methods="GET", times=2)]
    assert shaky.read("a") == bytes(range(256)) * 100
    assert shaky.proxy.counts[kind] == 2


@pytest.mark.parametrize("kind", ["slowdown", "failed", "reset", "truncated"])
def test_a_listing_is_repeated_until_it_is_whole(shaky, kind):
    for number in range(12):
        shaky.write(f"{number:02d}", b"")
    shaky.proxy.faults = [Fault(kind, methods="LIST", times=2)]
    assert shaky.list() == [f"{number:02d}" for number in range(12)]
    assert shaky.proxy.counts[kind] == 2


def test_create_whose_answer_is_lost_is_ours(shaky):
    shaky.proxy.faults = [Fault("lost", methods="PUT", times=1)]
    assert shaky.create("a", b"mine")
    assert not shaky.create("a", b"theirs")
    assert shaky.read("a") == b"mine"


@pytest.mark.parametrize(("kind", "word"), [("denied", "AccessDenied|Access Denied"), ("expired", "expired")])
def test_a_refusal_is_a_permission_error_with_its_cause(shaky, kind, word):
    shaky.write("cat/a.jpg", b"1")
    shaky.write("dog/a.jpg", b"1")
    shaky.proxy.faults = [Fault(kind, path="/cat/")]
    with pytest.raises(PermissionError, match=f"cannot read {shaky.url}/cat/a.jpg: .*({word})"):
        shaky.read("cat/a.jpg")
    assert shaky.read("dog/a.jpg") == b"1"


def test_faults_are_the_same_for_the_same_requests(fault_proxy):
    def failed():
        fault_proxy.reset()
        fault_proxy.faults = [Fault("slowdown", rate=0.3)]
        return [number for number in range(50) if status(f"{fault_proxy.endpoint}/bucket/{number}") == 503]

    assert failed() == failed()
    assert 5 < len(failed()) < 25
    assert fault_proxy.counts == {"GET": 50, "slowdown": len(failed()), "slowdown GET": len(failed())}


def status(url):
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
