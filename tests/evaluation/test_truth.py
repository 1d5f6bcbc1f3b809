"""True objects out of annotations and masks, in the network's frame."""

import io
import json

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
        image.putpalette(list(range(256)) * 3)
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
    ("read", "data", "said"),
    [
        (voc_truth, b"{}", "is no XML"),
        (voc_truth, b"<annotation/>", "no <bndbox>"),
        (voc_truth, voc([("one", 1, 2, 2)]), "<xmin> is 'one', which is no number"),
        (voc_truth, voc([("nan", 1, 2, 2)]), "<xmin> is 'nan', which is no number"),
        (voc_truth, b"<a><bndbox><xmin>1</xmin></bndbox></a>", "<ymin> is None"),
        (mask_truth, b"no image", "is no image"),
        (mask_truth, png(np.ones((40, 40), np.uint8))[:60], "is no image"),
        (mask_truth, png(np.zeros((3, 5), np.uint8)), "shows no object"),
    ],
    ids=["no XML", "no box", "no number", "NaN", "half a box", "no image", "cut off", "black"],
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
