"""Every way in which a run can end, alone and as the one run of a sweep.

Each end is pinned whole: what is raised, what it says, the exit code, what the observer hears and in which order, and
what is left on the disk.
"""

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.small import picture
from vbp.cli import _translated
from vbp.errors import InterruptedRunError, ModelError, StorageError, UsageError, VBPError
from vbp.pipeline import Observer, RunConfig, prepare, run
from vbp.pipeline.steps import Explain
from vbp.pipeline.sweep.sweep import sweep
from vbp.pipeline.sweep.sweepfile import Budget, Sweep, SweepRun
from vbp.storage.ledger.lease import TAKE_OVER_AFTER
from vbp.storage.stores import local as local_store

NOTHING_LEFT = "note Nothing left to do: every image has its row."
BEGUN = ["listed 5", r"note Running in this process \(.*\); float32 on CPU with \w+\.", "started 5 0"]
AGAIN = r"\. What was finished is kept; run the same command again\."


class Heard(Observer):
    """What a run said, in order; calls of `wrote` that follow each other are one. It acts where it is asked to."""

    def __init__(self, **acts: Callable[[], object]):
        self.said: list[str] = []
        self.written, self._acts = (0, 0), acts

    def note(self, text):
        self._hear("note", text)

    def listed(self, images):
        self._hear("listed", images)

    def started(self, images, done):
        self._hear("started", images, done)

    def wrote(self, ok, error):
        if self.said[-1].startswith("wrote"):
            self.said.pop()
        self.written = self.written[0] + ok, self.written[1] + error
        self._hear("wrote", *self.written)

    def _hear(self, kind, *values):
        self.said.append(f"{kind} {' '.join(map(str, values))}")
        if kind in self._acts:
            self._acts[kind]()


@dataclass
class Place:
    """A tree of five images, an output, and how to work on them."""

    photos: Path
    out: Path
    weights: str
    is_sweep: bool

    @property
    def run_output(self) -> Path:
        return self.out / "runs" / "only" if self.is_sweep else self.out

    def work(self, observer: Observer, **changes: Any) -> Any:
        fields = {"input": str(self.photos), "output": str(self.run_output), "weights": self.weights, "size": 32}
        fields |= {"precision": "float32", "runner": "local", "batch_size": 2, "shard_size": 3, "outputs": ("mask",)}
        config = RunConfig(**fields | changes)
        if not self.is_sweep:
            return run(config, observer)
        asked = Sweep(output=str(self.out), runs=(SweepRun(name="only", varied={}, config=config),), budget=Budget())
        return sweep(asked, observer)

    def files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(self.out.rglob("*")) if path.is_file()}

    def left(self) -> set[str]:
        """Names in the output of the run, and files in its ``_run``."""
        names = {path.name for path in self.run_output.glob("*") if path.is_file() or any(path.iterdir())}
        return names | {path.name for path in self.run_output.glob("_run/*") if path.is_file()}


@pytest.fixture
def place(request, tmp_path, network_file):
    for number, label in enumerate(("bird", "cat", "dog", "bird", "cat")):
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        picture(number, 40, 50).save(tmp_path / "photos" / label / f"{number}.png")
    return Place(tmp_path / "photos", tmp_path / "out", network_file, request.param)


both = pytest.mark.parametrize("place", [False, True], ids=["alone", "sweep"], indirect=True)


def ended(work: Callable[[], Any]) -> tuple[type[BaseException] | None, str, int]:
    """What was raised, what it said, and the exit code of the command."""
    try:
        with _translated():
            return None, "", work().exit_code
    except SystemExit as error:
        cause = error.__context__
        assert cause is not None
        return type(cause), str(cause), int(str(error.code))
    except Exception as error:  # a crash: Python ends with 1
        return type(error), str(error), 1


def assert_heard(heard: Heard, wanted: list[str]) -> None:
    assert len(heard.said) == len(wanted), heard.said
    for said, pattern in zip(heard.said, wanted, strict=True):
        assert re.fullmatch(pattern, said), (said, pattern)


def finishing(place: Place, *said: str) -> list[str]:
    """What is heard at the end of the one run of a sweep, and not of a run alone."""
    return [f"note only: {each}" for each in said] if place.is_sweep else []


DONE = {"masks", "index", "_run", "_SUCCESS", "run.json", "manifest.json"}


@both
def test_all_is_done(place):
    heard = Heard()
    assert ended(lambda: place.work(heard)) == (None, "", 0)
    assert_heard(heard, [*BEGUN, "wrote 5 0", *finishing(place, "finished")])
    assert place.left() == DONE
    assert {path.name for path in place.out.iterdir()} == (
        {"runs", "index", "_run", "_SUCCESS"} if place.is_sweep else {"masks", "index", "_run", "_SUCCESS"}
    )
    hint = "runner: ray for Ray" if place.is_sweep else "--runner ray for Ray"
    assert f"({hint})" in heard.said[1]


@both
def test_it_was_finished_earlier(place, monkeypatch):
    place.work(Observer())
    before, heard = place.files(), Heard()
    monkeypatch.setattr("vbp.networks.models.load_model", lambda *_, **__: pytest.fail("the network was loaded"))
    assert ended(lambda: place.work(heard)) == (None, "", 0)
    assert_heard(heard, [NOTHING_LEFT])
    assert place.files() == before


@both
def test_a_stricter_limit_withdraws_the_promise(place):
    (place.photos / "cat" / "1.png").write_bytes(b"no image")
    assert ended(lambda: place.work(Observer(), max_failures="20%")) == (None, "", 0)
    assert (place.out / "_SUCCESS").exists()
    assert ended(lambda: place.work(Observer(), max_failures="0")) == (None, "", 3)
    assert not (place.out / "_SUCCESS").exists()
    assert not (place.run_output / "_SUCCESS").exists()
    assert ended(lambda: place.work(Observer(), max_failures="20%")) == (None, "", 0)
    assert place.left() == DONE


@both
def test_nothing_is_left_after_a_listing(place):
    place.work(Observer())
    before, heard = place.files(), Heard()
    assert ended(lambda: place.work(heard, refresh=True)) == (None, "", 0)
    assert_heard(heard, ["listed 5", "note Since the last listing: 0 images are new, 0 changed.", NOTHING_LEFT])
    assert place.files() == before


REFUSALS = {
    "by the input": ({"input": "/nowhere"}, UsageError, r"INPUT \(=/nowhere\) does not exist; .*", []),
    "by the weights": ({"weights": "/nowhere.pth"}, UsageError, r"weights '/nowhere\.pth' cannot be read: .*", []),
    "by the network": ({"size": 1}, UsageError, r"--size \(=1\) does not suit --model vgg16: .*", []),
    "by the classes": (
        {"classes": "names.txt"},
        UsageError,
        r"Folders and class names do not match: folder 'bird' .*",
        ["listed 5"],
    ),
}


@both
@pytest.mark.parametrize("kind", REFUSALS)
def test_it_is_refused(place, kind, monkeypatch):
    monkeypatch.chdir(place.photos.parent)
    Path("names.txt").write_text("house\ntree\ncar\n")
    changes, error, said, wanted = REFUSALS[kind]
    heard = Heard()
    raised, told, code = ended(lambda: place.work(heard, **changes))
    assert (raised is not None and issubclass(raised, error), code) == (True, 2), (raised, told)
    assert re.fullmatch(("run only: " if place.is_sweep else "") + said, told), told
    assert_heard(heard, wanted)
    assert place.files() == {}


@both
def test_it_is_refused_by_a_system_that_lets_nobody_look(place, monkeypatch):
    def forbidden(config):
        raise PermissionError("not allowed")

    monkeypatch.setattr(prepare, "check_input", forbidden)
    heard = Heard()
    assert ended(lambda: place.work(heard)) == (UsageError, "not allowed", 2)
    assert_heard(heard, [])


@both
def test_another_configuration_is_refused(place):
    place.work(Observer())
    before, heard = place.files(), Heard()
    raised, said, code = ended(lambda: place.work(heard, preset="reference"))
    assert (raised, code) == (UsageError, 2)
    assert "was begun with another configuration: preset was 'paper', now 'reference'" in said
    assert said.startswith("run only: ") == place.is_sweep
    assert_heard(heard, [])
    assert place.files() == before


def of_another_host(folder: Path) -> None:
    """A lease that nobody renews; whoever had it before is fenced out."""
    for holder in folder.glob("_run/holders/*"):
        shutil.rmtree(holder)
    (folder / "_run").mkdir(parents=True, exist_ok=True)
    names = ("attempt", "host", "machine", "started", "token", "renewed_at")
    (folder / "_run" / "lease.json").write_text(json.dumps({name: "other" for name in names} | {"pid": 7}))


@both
@pytest.mark.parametrize("whose", ["of the run", "of the sweep"])
def test_another_has_the_lease_and_is_waited_for(place, whose, monkeypatch):
    monkeypatch.setenv(TAKE_OVER_AFTER, "0.2")
    of_another_host(place.run_output if whose == "of the run" else place.out)
    heard = Heard()
    assert ended(lambda: place.work(heard)) == (None, "", 0)
    waiting = "note Waiting for attempt other on other, process 7; if it is gone, taking over in 0 s."
    assert_heard(heard, [waiting, *BEGUN, "wrote 5 0", *finishing(place, "finished")])
    assert place.left() == DONE


@both
def test_another_takes_the_lease_half_way(place):
    heard = Heard(started=lambda: of_another_host(place.run_output))
    raised, said, code = ended(lambda: place.work(heard))
    lost = r"attempt .* lost .*: attempt other on other, process 7 has it now; nothing more is committed"
    assert code == 4
    if place.is_sweep:
        assert raised is None
        assert_heard(heard, [*BEGUN, f"note only: {lost}"])
    else:
        assert raised is InterruptedRunError
        assert re.fullmatch(lost + AGAIN, said)
        assert_heard(heard, BEGUN)
    assert place.left() == {"_run", "run.json", "manifest.json", "lease.json"}


@pytest.mark.parametrize("place", [True], ids=["sweep"], indirect=True)
def test_another_takes_the_lease_of_the_sweep_half_way(place):
    heard = Heard(started=lambda: of_another_host(place.out))
    raised, said, code = ended(lambda: place.work(heard))
    assert (raised, code) == (InterruptedRunError, 4)
    assert re.fullmatch(r"attempt sweep-.* lost .*: attempt other .*" + AGAIN, said)
    assert place.left() == DONE  # the run is its own
    assert not (place.out / "_SUCCESS").exists()


@both
def test_too_many_images_fail(place):
    next(place.photos.rglob("*.png")).write_bytes(b"no image")
    heard = Heard()
    assert ended(lambda: place.work(heard)) == (None, "", 3)
    assert_heard(heard, [*BEGUN, "wrote 4 1", *finishing(place, "finished, with too many failures")])
    assert place.left() == DONE - {"_SUCCESS"}
    assert not (place.out / "_SUCCESS").exists()
    assert (place.out / "index").is_dir()
    again = Heard()
    assert ended(lambda: place.work(again)) == (None, "", 3)
    assert "wrote" not in str(again.said)


@both
@pytest.mark.parametrize(
    ("cause", "kind", "code", "said"),
    [
        (StorageError("no answer."), InterruptedRunError, 4, "no answer" + AGAIN),
        (PermissionError("not allowed"), UsageError, 2, "not allowed"),
        (TimeoutError("too slow"), InterruptedRunError, 4, "too slow" + AGAIN),
        (ModelError("not so"), ModelError, 2, "not so"),
        (ValueError("a bug"), ValueError, 1, "a bug"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_the_listing_fails(place, monkeypatch, cause, kind, code, said):
    def failing(*_):
        raise cause

    monkeypatch.setattr(prepare, "list_input", failing)
    heard = Heard()
    raised, told, ended_with = ended(lambda: place.work(heard))
    named = place.is_sweep and kind is ModelError
    assert (raised, ended_with) == (UsageError if named else kind, code)
    assert re.fullmatch("run only: not so" if named else said, told), told
    assert_heard(heard, [])
    assert place.files() == {}


@both
def test_the_disk_is_full(place, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    heard = Heard(started=lambda: monkeypatch.setattr(local_store, "_fill", full))
    raised, said, code = ended(lambda: place.work(heard))
    assert (raised, code) == (InterruptedRunError, 4)
    assert re.fullmatch(r".*No space left on device" + AGAIN, said)
    if place.is_sweep:
        assert_heard(heard, [*BEGUN, "note only: .*No space left on device"])
    else:
        assert_heard(heard, BEGUN)
    assert place.left() == {"_run", "run.json", "manifest.json"}
    monkeypatch.undo()
    assert ended(lambda: place.work(Observer())) == (None, "", 0)


@both
@pytest.mark.parametrize(
    ("cause", "alone", "in_a_sweep"),
    [
        (StorageError("no answer."), (InterruptedRunError, 4, "no answer" + AGAIN), (4, "no answer.")),
        (OSError("no answer"), (InterruptedRunError, 4, "no answer" + AGAIN), (4, "no answer")),
        (InterruptedRunError("stopped"), (InterruptedRunError, 4, "stopped"), (4, "stopped")),
        (ModelError("not so"), (ModelError, 2, "not so"), (4, "not so")),
        (VBPError("so"), (VBPError, 1, "so"), (4, "so")),
        (RuntimeError("out of memory"), (RuntimeError, 1, "out of memory"), (1, "RuntimeError: out of memory")),
        (MemoryError("no more"), (MemoryError, 1, "no more"), (1, "MemoryError: no more")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_worker_fails(place, monkeypatch, cause, alone, in_a_sweep):
    def failing(self, batch):
        raise cause

    monkeypatch.setattr(Explain, "run", failing)
    heard = Heard()
    raised, said, code = ended(lambda: place.work(heard))
    if place.is_sweep:
        assert (raised, code) == (None, in_a_sweep[0])
        assert_heard(heard, [*BEGUN, f"note only: {re.escape(in_a_sweep[1])}"])
        assert not (place.out / "_SUCCESS").exists()
    else:
        assert (raised, code) == alone[:2]
        assert re.fullmatch(alone[2], said)
        assert_heard(heard, BEGUN)
    assert place.left() == {"_run", "run.json", "manifest.json"}
    monkeypatch.undo()
    assert ended(lambda: place.work(Observer())) == (None, "", 0)


def interrupt():
    raise KeyboardInterrupt


@both
@pytest.mark.parametrize(
    ("when", "heard_before", "left"),
    [
        ("listed", ["listed 5"], {"_run", "run.json"}),
        ("started", BEGUN, {"_run", "run.json", "manifest.json"}),
        ("wrote", [*BEGUN, "wrote 3 0"], {"masks", "_run", "run.json", "manifest.json"}),
    ],
)
def test_it_is_interrupted(place, when, heard_before, left):
    heard = Heard(**{when: interrupt})
    raised, _, code = ended(lambda: place.work(heard))
    assert (raised, code) == (KeyboardInterrupt, 4)
    assert_heard(heard, heard_before)
    assert place.left() == left
    assert not list(place.out.rglob("lease.json"))
    again = Heard()
    assert ended(lambda: place.work(again)) == (None, "", 0)
    done = "started 5 3" if when == "wrote" else "started 5 0"
    assert done in again.said


@both
def test_rows_that_get_lost_are_made_again(place):
    """A part of the ledger is damaged while the run is at work: noted, and its images are done once more."""

    def damage():
        parts = sorted(place.run_output.glob("_run/parts/*/*.parquet"))
        if len(parts) == 2 and not damaged:
            damaged.append(parts[0])
            parts[0].write_bytes(b"damaged")

    damaged: list[Path] = []
    heard = Heard(wrote=damage)
    assert ended(lambda: place.work(heard)) == (None, "", 0)
    note = r"note .*_run/parts/000000/.*\.parquet is damaged and was removed; its images are done again\."
    assert_heard(heard, [*BEGUN, "wrote 5 0", note, "wrote 8 0", *finishing(place, "finished")])
    assert place.left() == DONE


@both
@pytest.mark.parametrize(
    ("runner", "error", "raised", "code"),
    [("ray", UsageError, UsageError, 2), ("auto", OSError, InterruptedRunError, 4)],
    ids=["asked for", "needed"],
)
def test_ray_cannot_be_had(place, monkeypatch, runner, error, raised, code):
    """It is asked for before the listing where that is sure to need it, else behind."""

    def failing():
        raise error("no Ray here")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("vbp.pipeline.runner.LOCAL_IMAGES", 4)
    monkeypatch.setattr("vbp.pipeline.on_ray.cluster.connected", failing)
    heard = Heard()
    ending, said, ended_with = ended(lambda: place.work(heard, runner=runner))
    assert (ending, ended_with) == (raised, code)
    if error is OSError:
        assert said == "Ray does not work here: OSError('no Ray here'). Run the same command again."
    else:
        assert said == "no Ray here"
    assert_heard(heard, [*["listed 5"] * (runner == "auto"), "note Starting Ray."])
    assert place.left() == (set() if runner == "ray" else {"_run", "run.json", "manifest.json"})


@pytest.mark.parametrize("place", [True], ids=["sweep"], indirect=True)
@pytest.mark.parametrize(("after", "code"), [(3, 4), (5, 0)])
def test_the_budget_is_spent(place, monkeypatch, after, code):
    """A run whose last image has its row comes to its end; the others are cut off."""
    monkeypatch.setattr(
        "vbp.pipeline.sweep.sweep._Spent.up", lambda spent: "spent" if sum(heard.written) >= after else None
    )
    heard = Heard()
    assert ended(lambda: place.work(heard)) == (None, "", code)
    assert_heard(heard, [*BEGUN, f"wrote {after} 0", "note spent" if code else "note only: finished"])
    assert ("_SUCCESS" in place.left()) == (code == 0)
