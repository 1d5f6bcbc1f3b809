"""`vbp validate` that freezes during a repair and goes on after a run has taken the output over: it does no harm."""

import pytest

from tests.frozen import Aside, Freezer
from tests.protocol.model import Bucket, Turns
from tests.review.conftest import Made
from vbp.errors import LeaseLostError
from vbp.review.output import Output
from vbp.review.validate import validate
from vbp.storage import files
from vbp.storage.files import Folder
from vbp.storage.ledger.lease import Lease
from vbp.storage.record import is_complete

pytestmark = pytest.mark.long
KEYS = [f"cat/{number}.jpg" for number in range(8)]


@pytest.fixture(params=["disk", "memory"])
def made(request, tmp_path, monkeypatch):
    """Eight images, all ok, in two shards."""
    folder = Folder(tmp_path / "out")
    if request.param == "memory":
        bucket, opened = Bucket(Turns()), files._open
        chosen = lambda base, *rest: (bucket, "memory") if base.startswith("s3") else opened(base, *rest)  # noqa: E731
        monkeypatch.setattr(files, "_open", chosen)
        folder = Folder("s3://memory/out")
    made = Made(folder, KEYS)
    made.commit([0, 1, 2, 3])
    made.commit([4, 5, 6, 7])
    return made.promise()


def frozen(freezer, made, **what):
    aside = Aside(lambda: validate(Output.open(made.url), **what))
    assert freezer.reached.wait(60), aside.error
    return aside


def succeeded(made):
    """Another attempt takes over once the first is silent, does all images anew, and has finished."""
    lease = Lease(made.folder, "second")
    lease.acquire()
    for shard in ([0, 1, 2, 3], [4, 5, 6, 7]):
        made.commit(shard, seconds=100)
    made.promise("second")
    lease.release()
    return {path: made.folder.read(path) for path in made.folder.list() if "lease.json" not in path}


def harmless(made, freezer, aside, before, late=()):
    """Nothing has changed. In an object store, what was looked for before may be deleted late, and a part may come."""
    freezer.thawed.set()
    aside.join()
    assert isinstance(aside.error, LeaseLostError), aside.result
    after = {path: made.folder.read(path) for path in made.folder.list() if "lease.json" not in path}
    gone = before.keys() - after.keys()
    assert gone <= (set() if made.folder.is_local else set(late))
    came = after.keys() - before.keys()
    assert not came if made.folder.is_local else all(path.startswith("_run/parts/") for path in came)
    assert all(after[path] == before[path] for path in before.keys() - gone)
    assert gone or (is_complete(made.folder) and validate(Output.open(made.url), deep=True).is_sound)


@pytest.mark.parametrize(
    "point", ["remove .*/_SUCCESS", "replace .*/run.json", "remove .*/parts/", "replace .*/parts/"]
)
def test_repair(made, monkeypatch, point):
    made.folder.delete(f"masks/{KEYS[1]}.png")
    cut = made.folder.list("_run/parts/000001")[0]
    made.folder.write(cut, made.folder.read(cut)[:-20])
    freezer = Freezer(monkeypatch, point)
    aside = frozen(freezer, made, repair=True)
    late = {"_SUCCESS", cut}
    harmless(made, freezer, aside, succeeded(made), late)


def test_remove_orphans(made, monkeypatch):
    """What was an orphan is a result of the successor's."""
    made.commit([5], "error", seconds=10)
    made.folder.delete(made.folder.list("_run/parts/000001")[0])
    orphan = f"masks/{KEYS[5]}.png"
    freezer = Freezer(monkeypatch, f"remove .*/{orphan}")
    aside = frozen(freezer, made, remove_orphans=True)
    harmless(made, freezer, aside, succeeded(made), {orphan, f"overlays/{KEYS[5]}.jpg"})


@pytest.mark.parametrize(
    "point", ["remove .*/_SUCCESS", "replace .*/index/", "replace .*/run.json", "replace .*/_SUCCESS"]
)
def test_rebase(made, monkeypatch, point):
    """The index is taken for one that points elsewhere."""
    freezer = Freezer(monkeypatch, point)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vbp.review.examine.elsewhere", lambda output, rows: rows.num_rows)
        aside = frozen(freezer, made, rebase=True)
    harmless(made, freezer, aside, succeeded(made), ["_SUCCESS"])
