"""The storage policies allow what a run does, and nothing else: requests are recorded in front of a real S3 server."""

import fnmatch
import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import pytest
import yaml

from tests.servers import BUCKET
from vbp.pipeline import RunConfig, run
from vbp.storage.files import Folder

IAM = Path(__file__).parents[2] / "cluster" / "iam"
BUCKET_ACTIONS = {"s3:ListBucket"}
OBJECT_ACTIONS = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}
ON_GOOGLE = {
    "s3:ListBucket": {"storage.objects.list"},
    "s3:GetObject": {"storage.objects.get"},
    "s3:PutObject": {"storage.objects.create", "storage.objects.delete"},  # to replace an object takes both
    "s3:DeleteObject": {"storage.objects.delete"},
}
BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/"
ON_AZURE = {
    "s3:ListBucket": {BLOBS + "read"},
    "s3:GetObject": {BLOBS + "read"},
    "s3:PutObject": {BLOBS + "write"},
    "s3:DeleteObject": {BLOBS + "delete"},
}


def authorised(method, target, body):
    """The (action, ARN of its resource, prefix that is listed) that AWS looks up for a request."""
    url = urlsplit(target)
    bucket, _, key = unquote(url.path).lstrip("/").partition("/")
    query = parse_qs(url.query, keep_blank_values=True)
    on_bucket, on_object = f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/{key}"
    if key == "":
        if method == "POST" and "delete" in query:
            return [("s3:DeleteObject", f"{on_bucket}/{key}", None) for key in keys_of(body)]
        assert method in ("GET", "HEAD"), (method, target)
        assert bucket, f"{method} {target} lists all buckets"
        assert query.keys() <= {"list-type", "prefix", "delimiter", "encoding-type", "max-keys", "start-after",
                                "continuation-token", "fetch-owner"}, target  # fmt: skip
        return [("s3:ListBucket", on_bucket, query.get("prefix", [""])[0])]
    if method in ("GET", "HEAD"):
        assert not query.keys() & {"acl", "tagging", "versionId", "uploadId"}, target
        return [("s3:GetObject", on_object, None)]
    if method in ("PUT", "POST"):
        assert query.keys() <= {"uploads", "uploadId", "partNumber", "x-id"}, target
        return [("s3:PutObject", on_object, None)]
    assert method == "DELETE", (method, target)
    return [("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", on_object, None)]


def keys_of(body):
    """The keys that a request to delete many objects names."""
    return [element.text for element in ElementTree.fromstring(body).iter() if element.tag.endswith("Key")]


def statements_that_allow(policy, action, resource, prefix):
    """The numbers of the statements under which AWS would let this request pass."""
    allowing = set()
    for number, statement in enumerate(policy["Statement"]):
        assert statement["Effect"] == "Allow"
        prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
        if (
            action in as_list(statement["Action"])
            and any(fnmatch.fnmatchcase(resource, pattern) for pattern in as_list(statement["Resource"]))
            and (prefix is None or any(fnmatch.fnmatchcase(prefix, pattern) for pattern in prefixes))
        ):
            allowing.add(number)
    return allowing


def as_list(value):
    return [value] if isinstance(value, str) else value


def judge(policy, requests):
    """(requests that no statement allows, pairs of statement and action that no request needed)."""
    denied, used = [], set()
    for request in requests:
        allowing = statements_that_allow(policy, *request)
        used |= {(number, request[0]) for number in allowing}
        if not allowing:
            denied.append(request)
    given = {(n, action) for n, statement in enumerate(policy["Statement"]) for action in as_list(statement["Action"])}
    return denied, given - used


def storage_policy():
    return json.loads((IAM / "aws-storage.json").read_text().replace("BUCKET", BUCKET))


@pytest.fixture(scope="module")
def requests(s3_server, photos, network_file):
    """What a first run, a resumed one, one that looks for new images and one that starts over ask of the server."""
    seen = set()

    class Recorder(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.update(authorised(self.command, self.path, body))
            upstream = http.client.HTTPConnection("127.0.0.1", s3_server.port)
            upstream.request(self.command, self.path, body, dict(self.headers))  # Host too: it is signed
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response_only(answer.status)
            length = answer.headers["Content-Length"] if self.command == "HEAD" else str(len(content))
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content)
            upstream.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

        def log_message(self, *_):
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    direct = Folder(f"s3://{BUCKET}", s3_server.storage_options)
    for path in sorted(photos.rglob("*.*"))[:5]:
        direct.write(f"photos/{path.relative_to(photos)}", path.read_bytes())
    options = {"s3://": {"endpoint_url": f"http://127.0.0.1:{proxy.server_port}"}}
    direct.write("weights/model.safetensors", Path(network_file).read_bytes())
    base = {"input": f"s3://{BUCKET}/photos", "output": f"s3://{BUCKET}/out", "size": 32}
    base |= {"weights": f"s3://{BUCKET}/weights/model.safetensors"}
    base |= {"runner": "local", "precision": "float32", "storage_options": options}
    for changes in ({"limit": 3}, {}, {"refresh": True}, {"resume_mode": "overwrite"}):
        assert run(RunConfig(**base, **changes)).error == 0
    proxy.shutdown()
    proxy.server_close()
    return seen


def test_aws_allows_what_a_run_does_and_no_more(requests):
    assert len(requests) > 20
    denied, unused = judge(storage_policy(), requests)
    assert denied == []
    assert unused == set()


@pytest.mark.parametrize(
    ("statement", "change", "fault"),
    [
        (0, {"Action": "s3:ListBuckets"}, "denied"),
        (0, {"Condition": {"StringLike": {"s3:prefix": ["photos/*"]}}}, "denied"),
        (1, {"Resource": "arn:aws:s3:::vbp-test/photo/*"}, "denied"),
        (1, {"Resource": "arn:aws:s3:::vbp-test/photos/*"}, "denied"),
        (2, {"Action": ["s3:GetObject", "s3:PutObject"]}, "denied"),
        (1, {"Action": ["s3:GetObject", "s3:PutObject"]}, "unused"),
        (2, {"Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:PutObjectAcl"]}, "unused"),
    ],
)
def test_a_broken_policy_is_noticed(requests, statement, change, fault):
    policy = storage_policy()
    policy["Statement"][statement] |= change
    denied, unused = judge(policy, requests)
    assert {"denied": denied, "unused": unused}[fault]


def test_requests_are_told_apart():
    assert authorised("GET", "/b?list-type=2&prefix=out%2F&delimiter=", b"") == [
        ("s3:ListBucket", "arn:aws:s3:::b", "out/")
    ]
    assert authorised("HEAD", "/b/out/a%20b", b"") == [("s3:GetObject", "arn:aws:s3:::b/out/a b", None)]
    assert authorised("POST", "/b/out/x?uploads", b"") == [("s3:PutObject", "arn:aws:s3:::b/out/x", None)]
    assert authorised("DELETE", "/b/x?uploadId=1", b"") == [("s3:AbortMultipartUpload", "arn:aws:s3:::b/x", None)]
    many = b"<Delete><Object><Key>a</Key></Object><Object><Key>c/d</Key></Object></Delete>"
    assert [arn for _, arn, _ in authorised("POST", "/b?delete=", many)] == ["arn:aws:s3:::b/a", "arn:aws:s3:::b/c/d"]
    for method, target in (("GET", "/b?location"), ("GET", "/"), ("GET", "/b/x?acl"), ("PATCH", "/b/x")):
        with pytest.raises(AssertionError):
            authorised(method, target, b"")


def test_google_and_azure_give_the_same_rights(requests):
    needed = {action for action, _, _ in requests}
    google = yaml.safe_load((IAM / "gcs-role.yaml").read_text())["includedPermissions"]
    assert set(google) == set().union(*(ON_GOOGLE[action] for action in needed))
    azure = json.loads((IAM / "azure-role.json").read_text())
    assert azure["Actions"] == azure["NotActions"] == azure["NotDataActions"] == []
    assert set(azure["DataActions"]) == set().union(*(ON_AZURE[action] for action in needed))


def test_only_machines_take_the_role():
    (statement,) = json.loads((IAM / "aws-trust.json").read_text())["Statement"]
    assert statement["Principal"] == {"Service": "ec2.amazonaws.com"}
    assert (statement["Effect"], statement["Action"]) == ("Allow", "sts:AssumeRole")


@pytest.mark.parametrize("name", ["aws-storage.json", "aws-launcher.json"])
def test_policies_are_policies(name):
    policy = json.loads((IAM / name).read_text())
    assert policy.keys() == {"Version", "Statement"}
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        assert statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}
        for action in as_list(statement["Action"]):
            assert action.split(":")[0] in ("s3", "ec2", "iam")
            assert "*" not in action
            if action in BUCKET_ACTIONS | OBJECT_ACTIONS:
                assert all(("/" in arn) == (action in OBJECT_ACTIONS) for arn in as_list(statement["Resource"]))
    writes = [s for s in policy["Statement"] if not all(":Describe" in action for action in as_list(s["Action"]))]
    assert all(s["Resource"] != "*" or "Condition" in s for s in writes)
