"""One page for people: what it says, what it shows, and that nothing hostile gets through."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.review.conftest import Made, picture_bytes
from vbp.cli import main
from vbp.pipeline import RunConfig, run
from vbp.review.output import Output
from vbp.review.report import render, report
from vbp.storage.files import Folder

HOSTILE = ["<script>alert(1)</script>/a.jpg", 'x/"><img src=x onerror=alert(1)>.jpg', "x/{{ 7*7 }}.jpg", "x/'&amp;.jpg"]


class Page(html.parser.HTMLParser):
    """Tags and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.style = [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.style = tag == "style"

    def handle_endtag(self, tag):
        self.style = False

    def handle_data(self, data):
        if not self.style:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def pictures(self):
        """Pixels by alternative text."""
        found = {}
        for tag, attributes in self.tags:
            if tag == "img":
                data = attributes["src"].partition(";base64,")[2]
                found[attributes["alt"]] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        return found


def page_of(made, **options):
    return Page(render(report(Output.open(made.url), **options)))


@pytest.fixture
def photographs(tmp_path):
    """An image for every key that the outputs below list, at the URI that their rows name."""

    def uri(key):
        path = tmp_path / "in" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((30, 40, 3), np.uint8)
        pixels[:, :20] = (200, 0, 0)
        pixels[:, 20:] = (0, 0, 200)
        path.write_bytes(picture_bytes(pixels, "PNG"))
        return str(path)

    return uri


FRAME = {"frame_left": 5.0, "frame_top": 0.0, "frame_right": 35.0, "frame_bottom": 30.0}


def test_totals_folders_and_failures(make):
    made = make()
    made.commit([0, 1, 2, 3], correct=True, mask_area=0.25)
    made.commit([4], "error")
    made.commit([5, 6, 7], correct=False, mask_area=0.125)
    made.commit([8], mask_area=0.5, correct=True)
    found = report(Output.open(made.url), sample=0)
    rows = [(row.label, row.images, row.failed, row.mask_area, row.accuracy) for row in found.classes]
    assert rows == [("cat", 5, 1, 0.25, 1.0), ("dog", 4, 0, pytest.approx(0.875 / 4), 0.25)]
    page = Page(render(found))
    for words in ("interrupted", "explained 8", "failed 1", "left 1", "CorruptImageError", "cat/00004.jpg"):
        assert words in page.text
    assert re.search(r"cat 5 1 25.00 % 100.0 %", page.text)
    assert page.pictures() == {}


def test_what_the_network_saw_is_told(make):
    made = make()
    assert "rgb, bilinear, mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225" in page_of(made).text
    own = {"mean": [0.5], "std": [0.25], "interpolation": "bicubic", "channels": "grey"}
    made.begin("second", fingerprint=own)
    assert "grey, bicubic, mean 0.5, std 0.25" in page_of(made).text


def test_no_predictions_and_no_folders(make):
    made = make(["a.jpg"])
    made.commit([0])
    (row,) = report(Output.open(made.url)).classes
    assert (row.label, row.images, row.accuracy) == (None, 1, None)
    assert "none 1 0" in page_of(made).text


@pytest.mark.parametrize("promised", [True, False])
def test_the_sample_shows_input_mask_and_overlay(make, photographs, promised):
    made = make(6)
    for number in range(6):
        made.commit(
            [number],
            uri=photographs(made.keys[number]),
            predicted_label="tabby",
            probability=0.914,
            correct=True,
            **FRAME,
        )
    if promised:
        made.finish()
    page = page_of(made, sample=4)
    pictures = page.pictures()
    assert len(pictures) == 12
    keys = sorted(name.removeprefix("mask of ") for name in pictures if name.startswith("mask of "))
    assert len(keys) == 4
    assert keys == sorted(
        name.removeprefix("mask of ") for name in page_of(made, sample=4).pictures() if "mask" in name
    )
    assert page.text.count("tabby at 91 %") == 4
    for key in keys:
        mask = np.sqrt(made.mask(made.keys.index(key)))
        assert np.abs(pictures[f"mask of {key}"] / 255 - mask).max() < 0.05
        seen = pictures[f"input of {key}"].astype(int)  # the frame: 15 columns of red, 15 of blue
        assert seen.shape[0] == seen.shape[1]
        assert (seen[:, : seen.shape[1] // 2 - 1, 0] > 150).all()
        assert (seen[:, seen.shape[1] // 2 + 1 :, 2] > 150).all()


def test_pictures_that_are_not_there_leave_their_place(make):
    made = make(4)
    made.commit([0, 1, 2, 3])
    made.folder.delete("masks/cat/00000.jpg.png")
    made.folder.write("overlays/cat/00001.jpg.jpg", b"broken")
    page = page_of(made)
    assert page.text.count("not readable from here") == 4
    assert page.text.count("mask missing") == 1
    assert page.text.count("no overlay") == 1
    assert len(page.pictures()) == 6


def test_the_written_input_is_shown_where_there_is_one(make):
    made = make(1, outputs=["input", "mask"])
    made.commit([0])
    made.folder.write("inputs/cat/00000.jpg.png", picture_bytes(np.full((16, 16, 3), 77, np.uint8), "PNG"))
    assert (np.abs(page_of(made).pictures()["input of cat/00000.jpg"].astype(int) - 77) < 3).all()


def test_results_in_tars(photos, network_file, tmp_path):
    config = RunConfig(
        input=str(photos), output=str(tmp_path / "out"), weights=network_file, size=32, runner="local", limit=3,
        precision="float32", layout="webdataset",
    )  # fmt: skip
    run(config)
    pictures = Page(render(report(Output.open(config.output)))).pictures()
    assert len(pictures) == 9
    assert {picture.shape[:2] for picture in pictures.values()} == {(32, 32)}


def test_layout_none_and_an_output_without_rows(make):
    made = make(4, layout="none")
    assert "images 4" in page_of(made).text
    made.commit([0], files=False, mask_uri=None, overlay_uri=None)
    page = page_of(made)
    assert page.pictures() == {}
    assert "A sample" not in page.text


def test_hostile_names_are_text(make):
    made = make(HOSTILE)
    order = [made.keys.index(key) for key in HOSTILE]
    made.commit([order[0]], predicted_label="<b>x</b>", probability=0.5)
    made.commit([order[1]], "error", error_type="<i>", error_message="<script>alert(2)</script>")
    made.commit([order[2]])
    made.commit([order[3]])
    text = render(report(Output.open(made.url)))
    page = Page(text)
    assert not {"script", "i"} & {tag for tag, _ in page.tags}
    assert sum(tag == "b" for tag, _ in page.tags) == page.tags.count(("div", {"class": "tile"}))
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:image/").startswith("data:image/"), tag
        assert "href" not in attributes
    for key in HOSTILE:
        assert key in page.text
    assert "<script>alert(2)</script>" in page.text
    assert "<b>x</b>" in page.text


def test_the_page_loads_nothing_and_runs_nothing(finished):
    text = render(report(Output.open(finished.url)))
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert not re.search(r"https?://|url\(|@import", text)


def test_many_folders_are_cut(make, monkeypatch):
    from vbp.review import report as module

    monkeypatch.setattr(module, "_CLASSES", 3)
    monkeypatch.setattr(module, "_MOST_LABELS", 5)
    made = make([f"{n}/a.jpg" for n in range(8)])
    made.commit([0, 1, 2, 3])
    made.commit([4, 5, 6, 7])
    found = report(Output.open(made.url), sample=0)
    assert [(row.label, row.images) for row in found.classes] == [("(other folders)", 3), ("0", 1), ("1", 1)]
    assert found.classes_left_out == 3
    assert "and 3 smaller ones" in Page(render(found)).text


def test_on_a_real_store(s3_server):
    options = s3_server.storage_options
    made = Made(Folder(s3_server.new_url(), options), ["a.jpg"])
    made.commit([0])
    target = f"{made.url}-report/page.html"
    arguments = ["report", made.url, "--storage-options", json.dumps(options), "--to", target]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert b"mask of a.jpg" in Folder(f"{made.url}-report", options).read("page.html")


def test_the_command(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["report", finished.url])
    assert (result.exit_code, result.stdout) == (0, "report: report.html\n")
    assert "<title>VisualBackProp masks" in (tmp_path / "report.html").read_text()
    told = json.loads(CliRunner().invoke(main, ["report", finished.url, "--json", "--sample", "2"]).stdout)
    assert told["status"]["ok"] == 10
    assert len(told["samples"]) == 2
    assert [row["images"] for row in told["classes"]] == [5, 5]


def test_what_a_page_would_obey_is_shown_as_its_code(make):
    made = make(["a\u202egpj.exe\x9b.jpg", "b.jpg"])
    made.commit([0])
    made.commit([1], "error", error_message="\u2066 and \x1b[31m")
    page = render(report(Output.open(made.url)))
    assert not set("\u202e\x9b\u2066\x1b") & set(page)
    assert r"a\u202egpj.exe\u009b.jpg" in page
