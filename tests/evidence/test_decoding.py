"""Pixels and masks of two decoders held against each other: the figures of decoders whose difference is known."""

from PIL import Image

from tests.jpegs import decoder, jpeg, noise
from vbp.evidence.decoding import HEAD, compared, files_of
from vbp.explainer import Explainer


def brighter(files):
    """One pixel of each image, in its middle, is seven levels brighter or darker."""
    found = decoder(files)
    for pixels_CHW in found:
        spot = pixels_CHW[:, 112:113, 112:113]
        spot += (7 * (spot < 128).int() - 7 * (spot >= 128).int()).to(spot.dtype)
    return found


def test_differences_are_those_of_the_jpegs_alone(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(noise(224, 224, number)))
    Image.fromarray(noise(30, 30)).save(tmp_path / "2.png")
    files = files_of(str(tmp_path))
    assert list(files["key"]) == ["0.jpg", "1.jpg", "2.png"]
    explainer = Explainer("squeezenet1_1", "random", device="cpu", precision="float32", classify=False)
    same, other = compared(files, {"same": decoder, "other": brighter}, explainer)
    assert same == ("same", "2 of 3", "0", "0.000", "1.00000", "1.00000", "0.000")
    assert len(HEAD) == len(other)
    assert other[:4] == ("other", "2 of 3", "7", f"{7 / 224**2:.3f}")
    assert float(other[4]) <= float(other[5]) <= 1
