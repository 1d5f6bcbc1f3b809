"""The comparison of obstore and fsspec: what is measured, and that nothing stays behind."""

from vbp.evidence.stores import compare, compare_listings
from vbp.storage.files import Folder
from vbp.storage.stores.objects import ObjectStore
from vbp.storage.stores.remote import RemoteStore


def test_both_are_measured_and_nothing_stays(s3_server, monkeypatch):
    used = set()
    for cls in (ObjectStore, RemoteStore):
        monkeypatch.setattr(cls, "read", noting(cls.read, used))
    url = s3_server.new_url()
    rates = compare(url, s3_server.storage_options, objects=20, rounds=1)
    work = ("write", "read", "list")
    assert set(rates) == {f"{verb} by {name}" for verb in work for name in ("obstore", "fsspec")}
    assert all(rate.median > 0 for rate in rates.values())
    assert used == {ObjectStore, RemoteStore}
    assert Folder(url, s3_server.storage_options).list() == []


def test_listings_are_measured_and_nothing_stays(s3_server):
    url = s3_server.new_url()
    rates = compare_listings(url, s3_server.storage_options, folders=3, objects=4, rounds=1)
    assert {name: rate.median > 0 for name, rate in rates.items()} == {"page after page": True, "side by side": True}
    assert Folder(url, s3_server.storage_options).list() == []


def noting(read, used):
    def noted(self, path, *range, **limit):
        used.add(type(self))
        return read(self, path, *range, **limit)

    return noted
