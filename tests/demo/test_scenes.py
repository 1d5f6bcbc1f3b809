import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from vbp.demo.outlines import CLASSES
from vbp.demo.scenes import draw, generate, write_tree


def test_a_scene_depends_on_seed_and_index_alone():
    short, long = list(generate(3, 7, size=64)), list(generate(9, 7, size=64))
    for a, b in zip(short, long, strict=False):
        assert (a.name, a.label, a.distractors) == (b.name, b.label, b.distractors)
        np.testing.assert_array_equal(a.pixels_HWC, b.pixels_HWC)
        np.testing.assert_array_equal(a.object_HW, b.object_HW)


def test_other_seeds_and_indices_give_other_scenes():
    pixels = [scene.pixels_HWC.tobytes() for seed in (1, 2) for scene in generate(8, seed, size=64)]
    assert len(set(pixels)) == 16


def test_shapes_types_and_names():
    scenes = list(generate(16, 3, size=96))
    assert {scene.pixels_HWC.shape for scene in scenes} == {(96, 96, 3)}
    assert {scene.pixels_HWC.dtype for scene in scenes} == {np.dtype(np.uint8)}
    assert {scene.object_HW.shape for scene in scenes} == {(96, 96)}
    assert {scene.object_HW.dtype for scene in scenes} == {np.dtype(bool)}
    assert len({scene.name for scene in scenes}) == 16


def test_every_eight_scenes_hold_every_class_once():
    labels = [scene.label for scene in generate(24, 5, size=32)]
    for start in (0, 8, 16):
        assert sorted(labels[start : start + 8]) == [
            *("arrow", "bolt", "crescent", "cross", "gear", "heart", "ring", "star")
        ]
    assert labels[:8] != labels[8:16]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.3, 12), (0.5, 20), (1.0, 40)])
def test_share_of_scenes_with_distractors(share, expected):
    scenes = list(generate(40, 11, size=32, distractor_share=share))
    assert sum(scene.distractors for scene in scenes) == expected


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=f"distractor_share={share}"):
        next(generate(1, 1, distractor_share=share))


@pytest.mark.parametrize("label", sorted(CLASSES))
def test_the_truth_is_where_drawing_the_object_changed_the_scene(label):
    index = next(i for i, scene in enumerate(generate(8, 21, size=128)) if scene.label == label)
    with_object = draw(21, index, size=128, distractors=True)
    without = draw(21, index, size=128, distractors=True, with_object=False)
    changed = (with_object.pixels_HWC != without.pixels_HWC).any(2)
    truth = with_object.object_HW
    assert not without.object_HW.any()
    assert (changed & truth).sum() >= 0.97 * truth.sum()  # paint may match what it covers, here and there
    near = np.zeros_like(truth)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near |= np.roll(truth, (dy, dx), (0, 1))
    # Outside lies only the softened outline, and tips that are finer than a pixel.
    assert (changed & ~near).sum() <= 0.02 * truth.sum()


def test_distractors_change_the_scene_elsewhere_and_leave_the_object_as_it_is():
    for index in range(8):
        plain, busy = (draw(31, index, size=128, distractors=flag) for flag in (False, True))
        np.testing.assert_array_equal(plain.object_HW, busy.object_HW)
        solid = plain.object_HW & (plain.pixels_HWC == busy.pixels_HWC).all(2)
        assert solid.sum() >= 0.8 * plain.object_HW.sum()  # all but the softened outline
        assert (plain.pixels_HWC != busy.pixels_HWC).any(2).mean() > 0.005


def test_objects_lie_all_over_the_scene_and_differ_in_size():
    objects = [scene.object_HW for scene in generate(48, 41, size=64, distractor_share=0)]
    centres = np.array([np.argwhere(thing).mean(0) for thing in objects])
    areas = np.array([thing.mean() for thing in objects])
    assert (centres.min(0) < 20).all()
    assert (centres.max(0) > 44).all()
    assert areas.max() > 3 * areas.min()
    assert areas.max() < 0.2


def test_unit_keeps_the_size_of_objects_in_a_smaller_field():
    small = np.mean([draw(51, i, size=128, unit=224).object_HW.sum() for i in range(16)])
    whole = np.mean([draw(51, i, size=224).object_HW.sum() for i in range(16)])
    assert small == pytest.approx(whole, rel=0.02)


def test_write_tree_is_an_image_folder_with_its_truths_beside_it(tmp_path):
    scenes = write_tree(tmp_path / "images", tmp_path / "truth", 9, 61, size=48)
    folder = ImageFolder(str(tmp_path / "images"))
    assert folder.classes == ["arrow", "bolt", "crescent", "cross", "gear", "heart", "ring", "star"]
    assert len(folder.samples) == 9
    for scene in scenes:
        with Image.open(tmp_path / "images" / scene.label / f"{scene.name}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), scene.pixels_HWC)
        with Image.open(tmp_path / "truth" / scene.label / f"{scene.name}.png") as image:
            np.testing.assert_array_equal(np.asarray(image) == 255, scene.object_HW)


def test_truths_inside_the_image_tree_are_refused(tmp_path):
    with pytest.raises(ValueError, match="lies inside"):
        write_tree(tmp_path, tmp_path / "truth", 1, 1)
