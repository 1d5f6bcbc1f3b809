"""Explain a network of your own: any CNN that torch.fx can trace. The network is not modified.

Run::

    python examples/own_network.py
"""

import torch
from torch import nn

from vbp.saliency import VisualBackProp


class Own(nn.Module):
    """Stands for yours: two convolutions beside each other, one more, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 7, padding=3)
        self.deep = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.classifier = nn.Linear(16, 10)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        both = torch.relu(torch.cat([self.fine(images_BCHW), self.coarse(images_BCHW)], 1))
        return self.classifier(torch.relu(self.deep(both)).mean((2, 3)))  # type: ignore[no-any-return]


def main() -> None:
    """Explain a random picture."""
    torch.manual_seed(0)
    vbp = VisualBackProp(Own().eval(), preset="paper")
    images_BCHW = torch.randn(1, 3, 64, 96)  # normalised as your network was trained

    result = vbp.explain(images_BCHW)
    print("stages multiplied, first to last:", ", ".join(stage.name for stage in vbp.stages))
    print("mask:", tuple(result.mask.shape), "from", float(result.mask.min()), "to", float(result.mask.max()))
    print("class:", int(result.output.argmax()))


if __name__ == "__main__":
    main()
