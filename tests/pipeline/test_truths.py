"""Which file is the truth of which image."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from vbp.errors import TruthError, UsageError
from vbp.pipeline.truths import COCO, Truths, found_rule, refuse_shared, until_an_object

KEYS = ("dog/one.jpg", "dog/two.jpg", "cat.png")


def voc(width=10) -> bytes:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>2</ymax></bndbox>"
    return f"<annotation><size><width>{width}</width><height>6</height></size>{box}</annotation>".encode()


def mask() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.eye(6, 10, dtype=np.uint8) * 255).save(file, "PNG")
    return file.getvalue()


def coco(*names) -> bytes:
    images = [{"id": i, "file_name": name, "width": 10, "height": 6} for i, name in enumerate(names)]
    annotations = [{"id": i, "image_id": i, "bbox": [0, 0, 3, 2]} for i in range(len(names))]
    return json.dumps({"images": images, "annotations": annotations}).encode()


@pytest.mark.parametrize(
    ("names", "rule", "content"),
    [
        (("dog/one.xml", "dog/two.xml", "cat.xml"), "{stem}.xml", voc()),
        (("dog/one.png", "dog/two.png", "cat.png"), "{stem}.png", mask()),
        (("dog/one.jpg.png", "dog/two.jpg.png", "cat.png.png"), "{key}.png", mask()),
        (("dog/one_mask.png", "cat_mask.png"), "{stem}_mask.png", mask()),
        (("one.xml", "two.xml", "cat.xml"), "{name}.xml", voc()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_s_rule_is_found(tmp_path, names, rule, content):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert found_rule(str(tmp_path), KEYS) == rule
    truths = Truths(str(tmp_path), rule)
    assert truths.of("dog/one.jpg").size == (10, 6)
    assert truths.of("dog/three.jpg") is None


def test_an_image_is_not_its_own_truth(tmp_path):
    (tmp_path / "cat.png").write_bytes(mask())
    with pytest.raises(UsageError, match=r"has nothing about cat.png; looked for cat.xml, cat.png, cat.png.png"):
        found_rule(str(tmp_path), ["cat.png"], images=f"{tmp_path}/")
    assert found_rule(str(tmp_path), ["cat.png"], images=str(tmp_path / "photos")) == "{stem}.png"


@pytest.mark.parametrize("names", [("dog/one.jpg", "dog/two.jpg"), ("one.jpg", "two.jpg")], ids=["keys", "last parts"])
def test_a_coco_file_names_images_by_key_or_by_the_last_part(tmp_path, names):
    place = tmp_path / "c.json"
    place.write_bytes(coco(*names))
    assert found_rule(str(place), KEYS) == COCO
    truths = Truths(str(place), COCO)
    assert truths.of("dog/two.jpg") is not None
    assert truths.of("cat.png") is None


def test_two_images_with_one_last_part_are_not_confused(tmp_path):
    place = tmp_path / "c.json"
    place.write_bytes(coco("a/x.jpg", "b/x.jpg"))
    assert Truths(str(place), COCO).of("c/x.jpg") is None


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("none", "has nothing about dog/one.jpg, dog/two.jpg, cat.png; looked for dog/one.xml"),
        ("none.json", "cannot be read"),
        ("other.json", r"has no annotation of dog/one.jpg, .*; its images are called y/x.jpg\. Names must end"),
        ("bad.json", "is no COCO file"),
    ],
)
def test_a_truth_of_nothing_here_is_refused(tmp_path, place, said):
    (tmp_path / "other.json").write_bytes(coco("y/x.jpg"))
    (tmp_path / "bad.json").write_bytes(b"{}")
    with pytest.raises(UsageError, match=said):
        found_rule(str(tmp_path / place), KEYS)


def test_a_damaged_truth_names_its_file(tmp_path):
    (tmp_path / "cat.xml").write_bytes(b"<annotation>")
    with pytest.raises(TruthError, match=r"cat.xml: the truth is no XML"):
        Truths(str(tmp_path), "{stem}.xml").of("cat.png")


def test_images_without_an_object_may_come_first(tmp_path, monkeypatch):
    keys = [f"{number}.jpg" for number in range(6)]
    for number in (0, 1, 2):
        (tmp_path / f"{number}.xml").write_bytes(b"<annotation><filename>n.jpg</filename></annotation>")
    (tmp_path / "3.xml").write_bytes(voc())
    truths = Truths(str(tmp_path), "{stem}.xml")
    assert until_an_object(truths, iter(keys), "boxes") == keys[:4]
    monkeypatch.setattr("vbp.pipeline.truths.LOOKED_AT", 3)
    with pytest.raises(UsageError, match=r"--truth \(=boxes\) shows no object in any of the first 3 images: .*black"):
        until_an_object(truths, iter(keys), "boxes")


def test_an_image_that_lies_among_the_masks_is_not_its_own_truth(tmp_path):
    """In a folder of photos and masks, both kinds are images of INPUT."""
    for name in ("cat.png", "dog.png"):
        (tmp_path / name).write_bytes(mask())
    keys = ["cat.jpg", "cat.png", "dog.jpg", "dog.png"]
    rule = found_rule(str(tmp_path), keys, images=str(tmp_path))
    truths = Truths(str(tmp_path), rule, images=f"{tmp_path}/")
    assert [truths.of(key) is not None for key in keys] == [True, False, True, False]


@pytest.mark.parametrize(
    ("name", "key", "is_there"),
    [
        ("cat/x.jpg", "dog/x.jpg", False),
        ("cat/x.jpg", "x.jpg", True),
        ("x.jpg", "a/b/x.jpg", True),
        ("b/x.jpg", "a/b/x.jpg", True),
        ("./x.jpg", "x.jpg", True),
        ("my-x.jpg", "x.jpg", False),
    ],
)
def test_a_name_with_folders_is_not_the_truth_of_an_image_in_other_folders(tmp_path, name, key, is_there):
    place = tmp_path / "c.json"
    place.write_bytes(coco(name))
    assert (Truths(str(place), COCO).of(key) is not None) == is_there


def test_one_truth_for_two_images_is_refused(tmp_path):
    """Folders of classes number their images anew; a truth by the last part of the name is of none for sure."""
    keys = ["cat/1.jpg", "cat/2.jpg", "dog/2.jpg", "dog/3.jpg"]
    (tmp_path / "c.json").write_bytes(coco("1.jpg", "2.jpg"))
    for name in ("1.xml", "2.xml"):
        (tmp_path / name).write_bytes(voc())
    for truths, other in (
        (Truths(str(tmp_path / "c.json"), COCO), "2.jpg"),
        (Truths(str(tmp_path), "{name}.xml"), "2.xml"),
    ):
        refuse_shared(truths, keys[:2])
        refuse_shared(truths, ["cat/1.jpg", "cat/3.jpg", "dog/3.jpg"])  # no truth at all
        with pytest.raises(UsageError, match=f"cat/2.jpg and dog/2.jpg.*{other}"):
            refuse_shared(truths, keys)
    refuse_shared(Truths(str(tmp_path), "{stem}.xml"), ["1.jpg", "1.png"])
