"""Where does a network look in one photo?

Run::

    python examples/one_image.py photo.jpg mask.png overlay.jpg
"""

import sys
from pathlib import Path

from vbp.images.decode import decode
from vbp.images.encode import encode_jpeg, encode_mask
from vbp.images.overlay import overlay
from vbp.saliency import Explainer


def main(photo: str, mask: str, drawn: str) -> None:
    """Write the mask of a photo, and the photo with the mask drawn on it."""
    explainer = Explainer(model="vgg16", weights="demo")  # or "imagenet", or the path of a checkpoint
    picture = decode(Path(photo).read_bytes(), size=224, preprocessing=explainer.preprocessing)
    mask_HW = explainer(picture.pixels_HWC[None]).mask_BHW[0]  # a batch of one; float32 in [0, 1]

    Path(mask).write_bytes(encode_mask(mask_HW, "png8"))
    Path(drawn).write_bytes(encode_jpeg(overlay("heat", picture.pixels_HWC, mask_HW)))
    y, x = divmod(int(mask_HW.argmax()), mask_HW.shape[1])
    print(f"{photo}: brightest at ({x}, {y}) of {mask_HW.shape[1]} x {mask_HW.shape[0]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
