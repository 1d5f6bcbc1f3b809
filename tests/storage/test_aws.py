"""AWS configurations that people have: used, or refused with one message that says what is wrong."""

import pytest

from vbp.errors import UsageError
from vbp.storage.files import Folder
from vbp.storage.stores.objects import _ambient_endpoint, _aws_session, open_objects

CONFIG = """
[profile endpoint]
endpoint_url = http://127.0.0.1:1
[profile service]
services = mine
endpoint_url = http://127.0.0.1:1
[profile ignoring]
endpoint_url = http://127.0.0.1:1
ignore_configured_endpoint_urls = true
[profile sso]
sso_start_url = https://x.awsapps.com/start
sso_region = us-east-1
sso_account_id = 111
sso_role_name = role
[profile program]
credential_process = /nowhere/program
[profile half]
aws_access_key_id = a
[services mine]
s3 =
  endpoint_url = http://127.0.0.1:2
"""


@pytest.fixture
def aws(tmp_path, monkeypatch):
    """Sets the profile; nothing else of this machine counts."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text(CONFIG)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    return lambda profile: monkeypatch.setenv("AWS_PROFILE", profile)


@pytest.mark.parametrize(
    ("profile", "endpoint"),
    [("endpoint", "http://127.0.0.1:1"), ("service", "http://127.0.0.1:2"), ("ignoring", None), ("sso", None)],
)
def test_the_endpoint_of_the_configuration_is_asked(aws, monkeypatch, profile, endpoint):
    aws(profile)
    assert _ambient_endpoint("s3", _aws_session()) == endpoint
    store, _ = open_objects("s3://bucket", {})
    assert store._is_sorted == (endpoint is None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:3")
    assert _ambient_endpoint("s3", _aws_session()) == (None if profile == "ignoring" else "http://127.0.0.1:3")


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("sso", "no credentials: the SSO session of the AWS profile sso is over, run: aws sso login --profile sso"),
        ("program", "no credentials: those of the AWS profile program cannot be had .*/nowhere/program"),
        ("half", "no credentials: those of the AWS profile half .* are not whole .*aws_secret_access_key"),
    ],
)
def test_credentials_that_cannot_be_had(aws, monkeypatch, profile, words):
    aws(profile)
    monkeypatch.setattr("vbp.storage.stores.retry.TRIES_WHEN_DENIED", 1)
    with pytest.raises(PermissionError, match=f"^cannot read s3://{profile}/a: {words}"):
        Folder(f"s3://{profile}", {"s3://": {"endpoint_url": "http://127.0.0.1:1"}}).read("a")


def test_a_profile_that_is_not_there(aws):
    aws("other")
    with pytest.raises(
        UsageError, match=r"AWS_PROFILE names a profile that is not there .*other.*look into ~/.aws/config"
    ):
        Folder("s3://bucket-of-other")


def test_a_file_that_cannot_be_read(aws, tmp_path):
    (tmp_path / "config").write_text("no config\n[[[")
    with pytest.raises(UsageError, match=f"AWS' configuration cannot be read .*{tmp_path}/config.*: mend"):
        Folder("s3://bucket-of-none")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "localhost:9000", "ftp://h", "http://"])
def test_an_endpoint_without_its_scheme(endpoint):
    with pytest.raises(UsageError, match=r"the endpoint of s3://bucket \(=.*write http:// or https:// before it"):
        Folder("s3://bucket", {"s3://": {"endpoint_url": endpoint}})
