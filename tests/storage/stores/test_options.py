import pytest

from vbp.errors import UsageError
from vbp.storage.files import Folder
from vbp.storage.stores.options import check_options, options_for

OPTIONS = {
    "s3://": {"region": "all"},
    "s3://bucket": {"region": "bucket"},
    "s3://bucket/deep/er": {"region": "deeper"},
}


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("s3://other/x", "all"),
        ("s3://bucket", "bucket"),
        ("s3://bucket/x", "bucket"),
        ("s3://bucket2/x", "all"),
        ("s3://bucket/deep/er/x", "deeper"),
        ("s3://bucket/deep/error", "bucket"),
        ("gs://bucket/x", None),
    ],
)
def test_the_longest_prefix_wins(url, region):
    assert options_for(url, OPTIONS).get("region") == region


@pytest.mark.parametrize(
    ("options", "variable"),
    [
        ({"s3://": {"key": "k"}}, "AWS_ACCESS_KEY_ID"),
        ({"s3://b": {"client_kwargs": {"aws_secret_access_key": "k"}}}, "AWS_SECRET_ACCESS_KEY"),
        ({"s3://": {"Secret": "k"}}, "AWS_SECRET_ACCESS_KEY"),
        ({"gs://": {"TOKEN": "k"}}, "GOOGLE_APPLICATION_CREDENTIALS"),
        ({"az://": {"sas_token": "k"}}, "AZURE_STORAGE_SAS_TOKEN"),
        ({"abfs://": {"a": {"b": {"sas": "k"}}}}, "AZURE_STORAGE_SAS_TOKEN"),
        ({"sftp://host": {"password": "k"}}, "ssh-agent"),
    ],
)
def test_secrets_are_refused(options, variable):
    with pytest.raises(UsageError, match=variable):
        Folder("photos", options)


@pytest.mark.parametrize("options", [{"endpoint_url": "http://x"}, {"s3://b": "http://x"}])
def test_options_go_by_prefix(options):
    with pytest.raises(UsageError, match="URL prefix"):
        check_options(options)


def test_plain_settings_pass():
    options = {"s3://b": {"endpoint_url": "http://x", "anon": True, "requester_pays": True}}
    assert check_options(options) == options
    assert check_options(None) == {}
