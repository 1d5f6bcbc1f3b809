"""True objects out of annotations and masks, in the network's frame."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from vbp.errors import TruthError, UsageError
from vbp.evaluation.truth import Truth, coco_truths, mask_truth, voc_truth
from vbp.images.frame import Frame


def voc(boxes, width=10, height=6) -> bytes:
    drawn = "".join(
        f"<object><name>x</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{drawn}</annotation>".encode()


def png(values: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(values)
    if mode == "P":
        image = Image.fromarray(values)
        image.putpalette([0, 0, 0] + [128, 0, 0] * 254 + [224, 224, 192])  # PASCAL VOC's has more colours
    image.save(file, "PNG")
    return file.getvalue()


def coco(**annotation) -> bytes:
    image = {"id": 7, "file_name": "a/b.jpg", "width": 10, "height": 6}
    return json.dumps({"images": [image], "annotations": [{"id": 1, "image_id": 7, **annotation}]}).encode()


def slow(box, image, frame, shape):
    """Pixel by pixel: is the centre of this pixel of the frame in the box?"""
    inside = np.zeros(shape, bool)
    for row in range(shape[0]):
        for column in range(shape[1]):
            x = frame.left + (column + 0.5) / shape[1] * (frame.right - frame.left)
            y = frame.top + (row + 0.5) / shape[0] * (frame.bottom - frame.top)
            inside[row, column] = box[0] <= x < box[2] and box[1] <= y < box[3]
    return inside


WHOLE = Frame(0, 0, 10, 6)


def test_pixels_of_a_voc_box_count_from_one_and_include_their_ends():
    truth = voc_truth(voc([(1, 1, 3, 2)]))
    inside = truth.in_frame((10, 6), WHOLE, (6, 10))
    assert inside[:2, :3].all()
    assert inside.sum() == 6


@pytest.mark.parametrize("frame", [WHOLE, Frame(2, 0, 8, 6), Frame(-1, -3, 11, 9), Frame(0, 0, 5, 6)], ids=str)
def test_boxes_in_a_frame_as_pixel_by_pixel(frame):
    truth = voc_truth(voc([(3, 2, 7, 4)]))
    found = truth.in_frame((10, 6), frame, (12, 8))
    assert found.any()
    assert np.array_equal(found, slow((2, 1, 7, 4), (10, 6), frame, (12, 8)))


def test_several_objects_are_one_region():
    truth = voc_truth(voc([(1, 1, 2, 2), (9, 5, 10, 6)]))
    assert truth.in_frame((10, 6), WHOLE, (6, 10)).sum() == 8


def test_a_mask_is_the_box_that_it_draws():
    drawn = np.zeros((6, 10), np.uint8)
    drawn[1:4, 2:7] = 1  # any value but black
    for frame in (WHOLE, Frame(2, 0, 8, 6), Frame(-1, -3, 11, 9)):
        found = mask_truth(png(drawn)).in_frame((10, 6), frame, (12, 8))
        assert np.array_equal(found, slow((2, 1, 7, 4), (10, 6), frame, (12, 8)))


def test_padding_shows_no_object():
    found = mask_truth(png(np.full((6, 10), 255, np.uint8))).in_frame((10, 6), Frame(0, -2, 10, 8), (10, 10))
    assert not found[:2].any()
    assert not found[8:].any()
    assert found[2:8].all()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_masks_of_many_kinds(mode):
    drawn = np.zeros((6, 10), bool)
    drawn[2, 3] = True
    if mode == "P":
        values = drawn.astype(np.uint8) * 3
        values[0, 0] = 255  # the border of PASCAL VOC
        data = png(values, "P")
    elif mode == "RGB":
        data = png(np.stack([drawn * 0, drawn * 9, drawn * 0], axis=2).astype(np.uint8))
    elif mode == "RGBA":
        data = png(np.stack([drawn * 255] * 3 + [np.full((6, 10), 255)], axis=2).astype(np.uint8))
    elif mode == "I;16":
        data = png(drawn.astype(np.uint16) * 256)
    else:
        data = png(drawn if mode == "1" else drawn.astype(np.uint8) * 255)
    assert np.array_equal(mask_truth(data).in_frame((10, 6), WHOLE, (6, 10)), drawn)


def test_coco_boxes_count_from_zero():
    truth = coco_truths(coco(bbox=[2, 1, 5, 3]), "c.json")["a/b.jpg"]
    assert np.array_equal(truth.in_frame((10, 6), WHOLE, (6, 10)), slow((2, 1, 7, 4), (10, 6), WHOLE, (6, 10)))


@pytest.mark.parametrize(
    "segmentation",
    [
        [[2, 1, 7, 1, 7, 4, 2, 4]],
        # columns first: 2 columns of 6 and one pixel are outside, then 3 in, 3 out, 3 in, ... of 5 columns
        {"size": [6, 10], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 20]},
    ],
    ids=["polygon", "run lengths"],
)
def test_coco_segmentations(segmentation):
    truth = coco_truths(coco(segmentation=segmentation, bbox=[0, 0, 10, 6]), "c.json")["a/b.jpg"]
    assert np.array_equal(truth.in_frame((10, 6), WHOLE, (6, 10)), slow((2, 1, 7, 4), (10, 6), WHOLE, (6, 10)))


def test_coco_run_lengths_as_text():
    from pycocotools import mask

    drawn = slow((2, 1, 7, 4), (10, 6), WHOLE, (6, 10))
    runs = mask.encode(np.asfortranarray(drawn.astype(np.uint8)))
    segmentation = {"size": runs["size"], "counts": runs["counts"].decode()}
    truth = coco_truths(coco(segmentation=segmentation), "c.json")["a/b.jpg"]
    assert np.array_equal(truth.in_frame((10, 6), WHOLE, (6, 10)), drawn)


@pytest.mark.parametrize(
    ("truth", "image", "said"),
    [
        (lambda: voc_truth(voc([(1, 1, 3, 2)])), (20, 12), "of an image of 10x6 pixels, not 20x12."),
        (lambda: voc_truth(voc([(1, 1, 3, 2)])), (6, 10), "with width and height swapped"),
        (lambda: voc_truth(voc([(1, 1, 12, 2)], 0, 0)), (10, 6), "right 12, bottom 2 lies outside the image of 10x6"),
        (lambda: voc_truth(voc([(2, 1, 3, 9)], 0, 0)), (10, 6), "with x and y swapped it would fit"),
        (lambda: voc_truth(voc([(5, 1, 3, 2)])), (10, 6), "lies outside"),
        (lambda: mask_truth(png(np.ones((3, 5), np.uint8))), (10, 6), "of an image of 5x3 pixels, not 10x6"),
    ],
    ids=["other size", "turned", "outside", "swapped axes", "inside out", "mask of other size"],
)  # fmt: skip
def test_a_truth_of_another_image_is_refused(truth, image, said):
    with pytest.raises(TruthError, match=said):
        truth().in_frame(image, Frame(0, 0, *image), (6, 10))


def test_a_box_may_end_a_pixel_beyond_the_image():
    truth = voc_truth(voc([(0, 0, 11, 7)]))
    assert truth.in_frame((10, 6), WHOLE, (6, 10)).all()


@pytest.mark.parametrize(
    "truth", [voc_truth(voc([])), voc_truth(b"<annotation/>"), mask_truth(png(np.zeros((6, 10), np.uint8)))]
)
def test_an_image_may_show_no_object(truth):
    """As photographs do that were taken to have none; nothing is scored there, and nothing is wrong."""
    assert not truth.shows_object
    assert not truth.in_frame((10, 6), Frame(0, 0, 10, 6), (6, 10)).any()
    assert voc_truth(voc([(1, 1, 2, 2)])).shows_object


@pytest.mark.parametrize(
    ("read", "data", "said"),
    [
        (voc_truth, b"{}", "is no XML"),
        (voc_truth, b"<html/>", "is no annotation: it has no <bndbox>, and begins with <html>"),
        (voc_truth, voc([("one", 1, 2, 2)]), "<xmin> is 'one', which is no number"),
        (voc_truth, voc([("nan", 1, 2, 2)]), "<xmin> is 'nan', which is no number"),
        (voc_truth, b"<a><bndbox><xmin>1</xmin></bndbox></a>", "<ymin> is None"),
        (mask_truth, b"no image", "is no image"),
        (mask_truth, png(np.ones((40, 40), np.uint8))[:60], "is no image"),
    ],
    ids=["no XML", "no box", "no number", "NaN", "half a box", "no image", "cut off"],
)
def test_a_truth_that_cannot_be_is_named(read, data, said):
    with pytest.raises(TruthError, match=said):
        read(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[1]", "c.json.* is no COCO file"),
        (b"{", "c.json.* is no COCO file"),
        (b'{"images": []}', "'annotations'"),
        (b'{"images": [], "annotations": [{"image_id": 3}]}', r"images that it does not list: \[3\]"),
        (coco(bbox=[1, 2, 3]), "annotation 1 of a/b.jpg has neither"),
        (coco(), "annotation 1 of a/b.jpg has neither"),
        (coco(segmentation=[[1, 2]]), "annotation 1 of a/b.jpg has neither"),
    ],
    ids=["a list", "no JSON", "no annotations", "unknown image", "short box", "nothing", "a point"],
)
def test_a_coco_file_that_cannot_be_is_named(data, said):
    with pytest.raises(UsageError, match=said):
        coco_truths(data, "c.json")


def test_no_truth_is_no_object():
    assert not Truth().in_frame((10, 6), WHOLE, (6, 10)).any()


def with_palette(indices, colours) -> bytes:
    image = Image.fromarray(indices)
    image.putpalette([level for colour in colours for level in colour])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


BLACK, WHITE, RED, CREAM = (0, 0, 0), (255, 255, 255), (128, 0, 0), (224, 224, 192)


def test_a_palette_that_begins_with_white_does_not_turn_the_mask_inside_out():
    """Programs that optimise pictures order palettes as they like."""
    drawn = np.zeros((6, 10), bool)
    drawn[2:4, 3:8] = True
    for colours in ([WHITE, BLACK], [RED, BLACK]):
        data = with_palette(np.where(drawn, 0, 1).astype(np.uint8), colours)
        assert np.array_equal(mask_truth(data).in_frame((10, 6), WHOLE, (6, 10)), drawn)


def test_classes_of_a_palette_count_by_their_number_where_the_first_is_black():
    values = np.arange(60, dtype=np.uint8).reshape(6, 10) % 4
    data = with_palette(values, [BLACK, RED, BLACK, CREAM])  # the third class has no colour of its own
    assert np.array_equal(mask_truth(data).mask_hw, values != 0)


def test_the_last_colour_of_a_palette_is_a_border_unless_it_is_white():
    values = np.zeros((6, 10), np.uint8)
    values[1, 2], values[3, 4:7] = 128, 255
    voc_colours = [BLACK] + [RED] * 254 + [CREAM]
    assert mask_truth(with_palette(values, voc_colours)).mask_hw.sum() == 1
    assert mask_truth(with_palette(values, [(level,) * 3 for level in range(256)])).mask_hw.sum() == 4


def test_a_palette_without_black_has_no_background():
    data = with_palette(np.eye(6, 10, dtype=np.uint8), [WHITE, RED])
    with pytest.raises(TruthError, match=r"palette begins with the colour 255, 255, 255.*no black"):
        mask_truth(data)


@pytest.mark.parametrize("read", ["voc", "coco"])
def test_a_box_in_shares_of_the_image_is_refused(read):
    if read == "voc":
        truth = voc_truth(voc([(0.1, 0.2, 0.5, 0.9)], 0, 0))
    else:
        truth = coco_truths(coco(bbox=[0.1, 0.2, 0.5, 0.8]), "c.json")["a/b.jpg"]
    with pytest.raises(TruthError, match=r"lies in the first pixel; coordinates must be pixels, not shares"):
        truth.in_frame((10, 6), WHOLE, (6, 10))


def test_an_image_that_a_coco_file_lists_twice_has_the_objects_of_both():
    content = json.loads(coco(bbox=[0, 0, 2, 1]))
    content["images"].append(content["images"][0] | {"id": 8})
    content["annotations"].append({"id": 2, "image_id": 8, "bbox": [5, 3, 3, 1]})
    truth = coco_truths(json.dumps(content).encode(), "c.json")["a/b.jpg"]
    assert truth.in_frame((10, 6), WHOLE, (6, 10)).sum() == 5


@pytest.mark.parametrize("polygon", [[2, 1, 7, 4], [2, 1, 7, 1, 7, 4, 2]], ids=["two corners", "odd"])
def test_a_polygon_has_three_corners(polygon):
    """Four numbers are a box to pycocotools, of another kind than two corners."""
    for segmentation in ([polygon], [[2, 1, 7, 1, 7, 4, 2, 4], polygon]):
        with pytest.raises(UsageError, match="annotation 1 of a/b.jpg has neither"):
            coco_truths(coco(segmentation=segmentation), "c.json")


def test_without_pycocotools_run_lengths_are_refused_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    for counts in ("51", [13, 3]):
        with pytest.raises(UsageError, match=r"pip install 'visualbackprop\[eval\]'"):
            coco_truths(coco(segmentation={"size": [6, 10], "counts": counts}), "c.json")
