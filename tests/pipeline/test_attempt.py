"""An attempt holds its output, and leaves nothing behind when it is refused."""

import pytest

from vbp.errors import UsageError
from vbp.pipeline import Observer, RunConfig
from vbp.pipeline.attempt import attempted
from vbp.storage.collections.tree import ManifestRow
from vbp.storage.files import Folder
from vbp.storage.ledger.lease import LEASE
from vbp.storage.manifest.manifest import MANIFEST, write_manifest


@pytest.fixture
def asked(tmp_path):
    return RunConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"))


def test_attempts_have_names_of_their_own(asked):
    names = set()
    for _ in range(5):
        with attempted(asked, Observer()) as attempt:
            names.add(attempt.run_id)
    assert len(names) == 5
    assert all(len(name) == len("20261129T120000Z-12345678") for name in names)


def test_it_holds_the_output_and_gives_it_back(asked):
    output = Folder(asked.output)
    with attempted(asked, Observer()):
        assert output.exists(LEASE)
    assert not output.exists(LEASE)


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_first_run_that_is_refused_leaves_nothing_of_its_listing(asked, has_begun):
    """Once it has begun, whatever ends it takes nothing back."""

    def refused():
        with attempted(asked, Observer()) as attempt:
            write_manifest(attempt.output, [ManifestRow("a.jpg", "/in/a.jpg", b"a", None)], 4)
            attempt.has_begun = has_begun
            raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        refused()
    assert Folder(asked.output).exists(MANIFEST) == has_begun
