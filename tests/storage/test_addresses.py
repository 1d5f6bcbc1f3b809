import pytest

from vbp.errors import UsageError
from vbp.storage.addresses import check_place, version_in, without_secrets


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://h/a.jpg?X-Amz-Signature=x&y#z", "https://h/a.jpg"),
        ("HTTP://h/a%3Fb.jpg#top", "HTTP://h/a%3Fb.jpg"),
        ("https://token@h/a.jpg", "https://h/a.jpg"),
        ("https://me:word@h:80/a@b.jpg", "https://h:80/a@b.jpg"),
        ("sftp://me:word@h/a.jpg", "sftp://me@h/a.jpg"),
        ("sftp://me@h/a?b#c.jpg", "sftp://me@h/a?b#c.jpg"),
        ("abfs://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
        ("s3://b/hash#q?x=1.jpg", "s3://b/hash#q?x=1.jpg"),
        ("/data/a?b#c@d.jpg", "/data/a?b#c@d.jpg"),
        ("a@b:c.jpg", "a@b:c.jpg"),
    ],
)
def test_what_of_an_address_may_be_shown(uri, shown):
    assert without_secrets(uri) == shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    ("uri", "version"),
    [
        ("https://h/a.jpg?versionId=abc&X-Amz-Signature=x", "abc"),
        ("https://h/a.jpg?sig=x&versionid=2026-01-01T00:00:00.1Z", "2026-01-01T00:00:00.1Z"),
        ("https://h/a.jpg?generation=17#top", "17"),
        ("https://h/a.jpg?id=17", None),
        ("https://h/a.jpg#versionId=x", None),
        ("s3://b/a.jpg?versionId=abc", None),
    ],
)
def test_the_version_that_an_address_asks_for(uri, version):
    assert version_in(uri) == version


@pytest.mark.parametrize(
    "place",
    [
        "out", "/data/my out", "./s3:/x", "~/x", "C:\\photos", "s3://b", "s3://b/", "s3://b/out//", "s3://b/a b/out",
        "http://h:1/photos//x", "memory://x", "zip://photos::s3://b/a.zip", "sftp://me@h/x", "file:///x/../y",
        "az://container@account/x", "gs2/x", "azure:x",
    ],
)  # fmt: skip
def test_places_that_can_be_meant(place):
    check_place("OUTPUT", place)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("s3:/b/out", "is neither path nor URL; write s3://b/out, or ./ before a path"),
        ("S3:b/out", "write s3://b/out"),
        (" s3:///b/out", "has a blank"),
        ("https:/h/x", "write https://h/x"),
        ("s3://b//out", "has an empty part, . or .. between its slashes.*write s3://b/out"),
        ("gs://b/x//out/", "write gs://b/x/out"),
        ("az://b/./out", "write az://b/out"),
        ("s3://b/../out", "write s3://b/out"),
        ("s3://b/out\n", "blank or a line break"),
        ("s3://b/out?x=secret", r"\(=s3://b/out\) goes on with \?"),
        ("s3://b/out#secret", r"\(=s3://b/out\) goes on with #"),
        ("https://h/out?sig=secret", r"\(=https://h/out\) is given with a password or a query"),
        ("https://secret@h/out", r"\(=https://h/out\) is given with a password"),
        ("zip://x::https://h/a.zip?sig=secret", r"\(=zip://x::https://h/a.zip\) is given with"),
    ],
)
def test_places_that_cannot(place, words):
    with pytest.raises(UsageError, match=f"^OUTPUT .*{words}") as caught:
        check_place("OUTPUT", place)
    assert "secret" not in str(caught.value).replace("may be secret", "")
    assert "\n" not in str(caught.value)


def test_an_input_may_be_a_folder_with_a_number_sign():
    check_place("INPUT", "s3://b/photos#1/a?")
    with pytest.raises(UsageError, match="goes on with"):
        check_place("INPUT", "az://c/photos?sv=2026&sig=x")
