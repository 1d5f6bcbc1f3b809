"""The steps, each alone: what it makes of good rows, of failed ones, and of what is your own."""

import io
import os
import threading
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tests.jpegs import decoder, jpeg, noise
from vbp.columns import ERRORS, ColumnError, Contract, made_by
from vbp.errors import InterruptedRunError, UsageError
from vbp.images.encode import decode_mask, encode_png
from vbp.networks.preprocessing import Preprocessing
from vbp.pipeline import breaker, steps
from vbp.pipeline.classes import ClassMap
from vbp.pipeline.steps import Decode, DecodeOnDevice, Encode, Explain, Fetch, _assembled, as_table, objects
from vbp.saliency import VisualBackProp


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(40):
        (root / f"{number:02d}.jpg").write_bytes(b"x")
    return root


def batch(root, numbers):
    names = [f"{number:02d}.jpg" for number in numbers]
    columns = {"key": names, "uri": [f"{root}/{name}" for name in names], "path": list(map(os.fsencode, names))}
    return {name: objects(values) for name, values in columns.items()}


@pytest.mark.parametrize("mount_point_is_left", [False, True])
def test_an_input_that_is_lost_makes_no_error_rows(photos, monkeypatch, mount_point_is_left):
    monkeypatch.setattr(breaker.Breaker.__init__, "__defaults__", (200, 10, 50, 0.0, lambda seconds: None, None))
    fetch = Fetch(str(photos))
    assert all(data == b"x" for data in fetch(batch(photos, range(20)))["data"])
    photos.rename(photos.with_name("elsewhere"))
    if mount_point_is_left:
        photos.mkdir()
    with pytest.raises(InterruptedRunError, match="FileNotFoundError.*run the same command again"):
        fetch(batch(photos, range(20, 24)))
    if mount_point_is_left:
        photos.rmdir()
    photos.with_name("elsewhere").rename(photos)
    assert all(data == b"x" for data in fetch(batch(photos, range(20, 40)))["data"])


def test_a_single_missing_file_is_an_error_row(photos):
    (photos / "05.jpg").unlink()
    found = Fetch(str(photos))(batch(photos, range(20)))
    assert [kind for kind in found["error_type"] if kind] == ["FileNotFoundError"]


def test_what_an_address_may_hold_in_secret_is_read_with_and_not_kept(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    columns = {"key": ["k", "l"], "uri": [f"{tmp_path}/a", "http://me:word@127.0.0.1:9/x?sig=word#word"]}
    found = Fetch("", max_bytes=4)({name: objects(values) for name, values in columns.items()})
    assert list(found["uri"]) == [f"{tmp_path}/a", "http://127.0.0.1:9/x"]
    assert list(found["error_type"]) == ["FileTooLargeError", "UsageError"]
    assert "word" not in str(found).replace("password", "")


def columns(**values):
    return {name: objects(list(each)) for name, each in values.items()}


def with_peak(x, y, width=4, height=4):
    mask = np.zeros((height, width), np.float32)
    mask[y, x], mask[y - 1, x] = 1.0, 0.25
    return mask


def test_a_step_keeps_what_failed_before_and_says_how_long_it_took():
    failed = columns(key=["a", "b"], data=[None, b"no image"], error_stage=["fetch", None]) | columns(
        error_type=["E", float("nan")],
        error_message=["gone", None],  # null, as Ray hands it on
    )
    found = Decode(8)(failed)
    assert list(found["error_stage"]) == ["fetch", "decode"]
    assert list(found["error_type"]) == ["E", "NotAnImageError"]
    assert (found["error_message"][0], found["width"][0], found["pixels"].shape) == ("gone", None, (2, 8, 8, 3))
    assert "data" not in found
    assert len(found["seconds_decode"]) == 2
    assert list(failed["error_stage"]) == ["fetch", None]


def test_encode_takes_masks_of_your_own():
    masks = np.stack([with_peak(3, 1), with_peak(0, 2)])
    found = Encode(("mask",), "npy")({"key": objects(["a", "b"]), "mask": masks})
    for row, mask in enumerate(masks):
        assert np.array_equal(decode_mask(found["file_mask"][row]), mask)
    assert list(zip(found["peak_x"], found["peak_y"], strict=True)) == [(3, 1), (0, 2)]
    assert (found["mask_mean"][0], found["mask_area"][0]) == (1.25 / 16, 1 / 16)
    assert (found["mask_width"][0], found["mask_height"][0], found["image_peak_x"][0]) == (4, 4, None)
    with pytest.raises(ColumnError, match=r"encode needs the columns \['pixels'\]"):
        Encode()({"key": objects(["a"]), "mask": masks[:1]})


def test_the_peak_is_placed_in_the_photograph():
    frame = columns(frame_left=[10.0, 0.0], frame_top=[20.0, -2.0], frame_right=[50.0, 4.0], frame_bottom=[60.0, 6.0])
    masks = objects([with_peak(3, 1), with_peak(1, 1, width=2, height=2)])
    found = Encode(())({"key": objects(["a", "b"]), "mask": masks} | frame)
    assert (found["image_peak_x"][0], found["image_peak_y"][0]) == (10 + 3.5 * 10, 20 + 1.5 * 10)
    assert (found["image_peak_x"][1], found["image_peak_y"][1]) == (3.0, 4.0)
    assert [found["mask_width"][1], found["mask_height"][1]] == [2, 2]


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch", "original"])
@pytest.mark.parametrize("frame", ["network", "image"])
def test_the_peak_lies_where_the_mask_is_brightest_in_the_photograph(fit, frame):
    """A bright square in a dark picture; as a mask, the network's own view of it."""
    photo = np.zeros((60, 90, 3), np.uint8)
    photo[20:32, 50:62] = 255
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    seen = Decode(30, fit, keep_data=True)(columns(key=["a"], data=[buffer.getvalue()]))
    seen["mask"] = objects([pixels[..., 0].astype(np.float32) / 255 for pixels in seen["pixels"]])
    row = {name: values[0] for name, values in Encode(("mask",), "npy", frame=frame)(seen).items()}
    assert 50 <= row["image_peak_x"] <= 62
    assert 20 <= row["image_peak_y"] <= 32
    mask = decode_mask(row["file_mask"])
    assert (row["mask_height"], row["mask_width"]) == mask.shape
    if frame == "image":
        assert (row["image_peak_x"], row["image_peak_y"]) == (row["peak_x"] + 0.5, row["peak_y"] + 0.5)


def test_seconds_of_calls_at_the_same_time_are_counted_once(monkeypatch):
    """By a clock of our own: one call from 0 to 30, a second from 10 to 40, a third from 60 to 62."""
    times = iter([0, 10, 30, 40, 60, 62])
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=lambda: float(next(times))))
    inside, second, first_ended = threading.Event(), threading.Event(), threading.Event()

    class Slow(steps.Step):
        stage = "decode"
        columns = Contract("decode", frozenset(), frozenset({"seconds_decode", *ERRORS}), frozenset())

        def run(self, batch):
            if batch["key"][0] == "first":
                inside.set()
                second.wait(30)
            elif batch["key"][0] == "second":
                second.set()
                first_ended.wait(30)
            return batch

    step, found = Slow(), {}

    def call(name):
        found[name] = step({"key": objects([name])})["seconds_decode"][0]

    one, two = (threading.Thread(target=call, args=(name,)) for name in ("first", "second"))
    one.start()
    inside.wait(30)
    two.start()
    one.join()
    first_ended.set()
    two.join()
    call("third")
    assert found == {"first": 30, "second": 10, "third": 2}


def test_without_a_mask_there_is_nothing_to_say_of_one():
    batch = {"key": objects(["a", "b"]), "mask": np.stack([with_peak(3, 1)] * 2), "selected": np.array([False, True])}
    found = Encode(("mask",))(batch)
    told = ("file_mask", "mask_mean", "mask_area", "peak_x", "peak_y", "mask_width", "mask_height", "image_peak_x")
    assert all(found[name][0] is None for name in told)
    assert found["mask_width"][1] == 4


def test_images_side_by_side_are_as_one_after_another():
    """On as many threads as torch has; each image's failure is its own."""
    rng = np.random.default_rng(5)
    data = [encode_png(rng.integers(0, 256, (30, 40 + row, 3), dtype=np.uint8)) for row in range(9)]
    data[4] = data[4][:60]
    given = {"key": objects([str(row) for row in range(9)]), "data": objects(data)}
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = []
        for side_by_side in (False, True):
            seen = Decode(16, side_by_side=side_by_side)(given)
            seen["mask"] = np.stack([with_peak(row % 4, 1) for row in range(9)])
            seen["pixels"] = seen["pixels"][:, :4, :4]
            found.append(Encode(side_by_side=side_by_side)(seen))
    finally:
        torch.set_num_threads(threads)
    one, other = found
    assert [stage is not None for stage in one["error_stage"]] == [row == 4 for row in range(9)]
    for name in one.keys() - {"seconds_decode", "seconds_encode"}:
        assert list(one[name]) == list(other[name]), name


def mixed():
    """Rows for both decoders, of which some fail in either, and one has failed before."""
    broken = bytearray(jpeg(noise(50, 40)))
    broken[broken.index(b"\xff\xc4") + 4] = 0x77  # a table of a kind that does not exist; the header is whole
    data = [jpeg(noise(60, 40)), encode_png(noise(30, 45)), bytes(broken), b"text", None, jpeg(noise(33, 99, 1)), b""]
    return columns(key=list("abcdefg"), data=data, error_stage=[*[None] * 4, "fetch", *[None] * 2])


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_decoded_in_two_halves_rows_are_as_in_one(fit):
    first, expected = Decode(32, fit, before_device=True)(mixed()), Decode(32, fit)(mixed())
    assert [len(data) > 0 for data in first["data"]] == [True, False, True, False, False, True, False]
    assert [pixels.shape[0] for pixels in first["pixels"]] == [1, 32, 1, 32, 32, 1, 32]
    found = DecodeOnDevice(decoder, 32, fit)(first)
    assert found.keys() == expected.keys()
    assert [stage for stage in found["error_stage"]] == [None, None, "decode", "decode", "fetch", None, "decode"]
    for name in found.keys() - {"pixels", "seconds_decode"}:
        assert list(found[name]) == list(expected[name]), name
    assert (found["pixels"].dtype, found["pixels"].shape) == (np.uint8, (7, 32, 32, 3))
    assert np.abs(found["pixels"].astype(int) - expected["pixels"]).max() <= 1
    assert (found["seconds_decode"] > first["seconds_decode"]).all()


def test_what_the_device_cannot_read_and_the_cpu_can_is_read():
    def none(files):
        raise RuntimeError("status 4")

    given = columns(key=["a"], data=[jpeg(noise(60, 40))])
    found = DecodeOnDevice(none, 32)(Decode(32, before_device=True)(given))
    assert np.array_equal(found["pixels"], Decode(32)(given)["pixels"])


class Small(torch.nn.Sequential):
    def __init__(self):
        torch.manual_seed(3)
        convolutions = [torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3, stride=2, padding=1)]
        super().__init__(convolutions[0], torch.nn.ReLU(), convolutions[1], torch.nn.ReLU())


@pytest.mark.parametrize("own", [Small(), Small], ids=["module", "factory"])
def test_explain_takes_a_network_of_your_own(own):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    preprocessing = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    explain = Explain({"model": own, "preprocessing": preprocessing, "precision": "float32"})
    found = Encode(("mask", "overlay"), "npy")(explain({"key": objects(list("abc")), "pixels": pixels}))
    assert list(found["error_stage"]) == [None] * 3
    normalised = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(preprocessing.mean)[:, None, None]) / (
        torch.tensor(preprocessing.std)[:, None, None]
    )
    expected = VisualBackProp(Small().eval())(normalised)[:, 0]
    for row in range(3):
        assert np.abs(decode_mask(found["file_mask"][row]) - expected[row].numpy()).max() < 1e-4
    again = Explain(own, preprocessing=preprocessing)({"key": objects(list("abc")), "pixels": pixels})
    assert np.abs(again["mask"] - expected.numpy()).max() < 0.05  # bfloat16 where the processor has it
    if own is not Small:
        assert own.training
        assert all(each.requires_grad for each in own.parameters())


def test_steps_beside_the_network_read_what_they_say_and_no_more():
    """On GPU workers all else is sealed; what they would miss there, they must miss here."""
    network = torch.nn.Sequential(*Small(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    classes = ClassMap({"left": 0, "right": 1}, ["left", "right"], "made up")
    explain = Explain(network, preprocessing=Preprocessing((0.5,) * 3, (0.2,) * 3), classes=classes)
    decode = DecodeOnDevice(decoder, 32)
    label, sha256 = objects([*["left", "right"] * 3, None]), objects(["0"] * 7)
    given = Decode(32, before_device=True)(mixed() | {"label": label, "uri": sha256, "sha256": sha256})

    def read(batch, names):
        return {name: values for name, values in batch.items() if name in names}

    whole, part = decode(given), decode(read(given, DecodeOnDevice.reads))
    whole, part = explain(whole), explain(read(part | read(given, Explain.reads - part.keys()), Explain.reads))
    assert {"prediction", "correct", "mask"} <= part.keys()
    assert [stage for stage in part["error_stage"]] == [None, None, "decode", "decode", "fetch", None, "decode"]
    for name in part.keys() - {"seconds_explain"}:
        assert all(np.array_equal(*pair) for pair in zip(part[name], whole[name], strict=True)), name


def test_what_is_said_of_images_does_not_hold_the_memory_of_their_masks():
    """On a GPU all results of a batch are views of one piece of pinned memory; rows outlive their masks by minutes."""
    network = torch.nn.Sequential(*Small(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    classes = ClassMap({"left": 0, "right": 1}, ["left", "right"], "made up")
    explain = Explain(network, preprocessing=Preprocessing((0.5,) * 3, (0.2,) * 3), classes=classes)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    found = explain({"key": objects(list("abc")), "label": objects(["left", "right", None]), "pixels": pixels})
    for name in ("flat", "log10_max", "prediction", "probability"):
        assert found[name].base is None, name


def test_what_a_network_of_your_own_wants_to_see_is_never_guessed():
    with pytest.raises(UsageError, match=r"A network of your own needs preprocessing: .*Preprocessing\(mean, std\)"):
        Explain(Small())


class Careless(Decode):
    """A step with a slip: columns by name that it adds to what Decode makes, or takes away."""

    def __init__(self, more=(), less=()):
        super().__init__(16)
        self._more, self._less = more, less

    def run(self, batch):
        made = super().run(batch)
        return {n: v for n, v in made.items() if n not in self._less} | {n: made["key"] for n in self._more}


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        ({"more": ["widht"], "less": ["width"]}, "decode makes the columns .'widht'"),
        ({"less": ["frame_top"]}, "decode does not make the columns .'frame_top'"),
        ({"less": ["sha256"]}, "decode loses the columns .'sha256'"),
        ({"more": ["data"]}, "decode leaves the columns .'data'"),
    ],
    ids=["misspelt", "missing", "lost", "left over"],
)
def test_a_step_that_makes_or_loses_another_column_is_stopped(photos, slip, said):
    fetched = Fetch(str(photos))(batch(photos, range(2)))
    with pytest.raises(ColumnError, match=said):
        Careless(**slip)(fetched)
    assert set(Careless()(fetched)) == set(fetched) - {"data"} | made_by("decode")


def test_columns_of_ones_own_pass_through_and_end_before_the_index(photos):
    found = Decode(16)(Fetch(str(photos))(batch(photos, range(2)) | {"camera": objects(["left", "right"])}))
    assert list(found["camera"]) == ["left", "right"]
    with pytest.raises(ColumnError, match="the index has no columns .'camera'"):
        as_table({name: found[name] for name in ("key", "uri", "camera")})


def test_what_is_missing_is_named_before_the_step(photos):
    with pytest.raises(ColumnError, match=r"decode needs the columns \['data'\]; the batch has .'bytes_', 'key'"):
        Decode(16)({"key": objects(["a"]), "bytes_": objects([b""])})


def test_a_table_has_the_types_of_the_index_and_null_where_ray_makes_nan():
    found = as_table({"peak_x": np.array([3.0, np.nan]), "key": objects(["a", "b"]), "correct": objects([True, None])})
    assert found.schema.names == ["key", "peak_x", "correct"]
    assert found.schema.field("peak_x").type == pa.int32()
    assert found.to_pylist() == [
        {"key": "a", "peak_x": 3, "correct": True},
        {"key": "b", "peak_x": None, "correct": None},
    ]


def test_a_row_without_a_mask_of_its_own_gets_zeros():
    mask = np.full((2, 4, 4), 0.5, np.float32)
    assert _assembled([([0, 1], mask)], 2) is mask
    assert _assembled([([0, 2], mask)], 3).sum((1, 2)).tolist() == [8, 0, 8]
    ragged = _assembled([([2], mask[:1]), ([0], mask[:1, :3])], 3)
    assert [(each.shape, float(each.sum())) for each in ragged] == [((3, 4), 6), ((1, 1), 0), ((4, 4), 8)]
    assert _assembled([], 2).shape == (2, 1, 1)
