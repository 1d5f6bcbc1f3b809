"""The table of methods: what each is, which library computes it, whether it needs a classifier, where it was published.

`vbp.evaluation.saliencies` applies them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Library = Literal["captum", "pytorch_grad_cam", "zennit"]
"""A package, by the name under which it is imported."""


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        name: as in `vbp.choices.METHOD_NAMES` and on the command line.
        title: as in tables and plots.
        meaning: what its saliencies are, in a few words, to follow "bright is".
        paper: authors, where and when it was published; empty for a baseline.
        library: the package that computes it; None: vbp itself.
        needs_classifier: whether it explains a class.
    """

    name: str
    title: str
    meaning: str
    paper: str = ""
    library: Library | None = None
    needs_classifier: bool = False

    @property
    def package(self) -> str | None:
        """The library's name for pip."""
        return None if self.library is None else self.library.replace("pytorch_grad_cam", "grad-cam")


_VBP = "Bojarski et al., VisualBackProp, ICRA 2018 (arXiv 1611.05418)"
_GRAD_CAM = "Selvaraju et al., Grad-CAM, ICCV 2017 (arXiv 1610.02391)"


def _cam(name: str, title: str, meaning: str, paper: str) -> Entry:
    return Entry(name, title, meaning, paper, "pytorch_grad_cam", needs_classifier=True)


def _gradient(name: str, title: str, meaning: str, paper: str) -> Entry:
    return Entry(name, title, meaning, paper, "captum", needs_classifier=True)


METHODS: Mapping[str, Entry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Entry("vbp", "VisualBackProp", "where maps of all stages are active, with the settings of the run", _VBP),
            Entry(
                "vbp-reference",
                "VisualBackProp, reference",
                "the same, as devansh20la/VisualBackprop computes it",
                _VBP,
            ),
            Entry("vbp-last", "VisualBackProp, last stages", "the same, of the last stage of each resolution", _VBP),
            Entry(
                "vbp-target",
                "VisualBackProp, weighted",
                "the same, with the deepest map weighted for the class",
                f"{_VBP}; weights: {_GRAD_CAM}",
                needs_classifier=True,
            ),
            Entry("random-twin", "VisualBackProp, random twin", "the same, of this network with random weights"),
            Entry(
                "eigencam",
                "EigenCAM",
                "the first principal component of the deepest map",
                "Muhammad and Yeasin, Eigen-CAM, IJCNN 2020 (arXiv 2008.00299); sign: Chung and Ying, Seg-Eigen-CAM, "
                "Applied Sciences 15(13), 2025",
                "pytorch_grad_cam",
            ),
            _cam("gradcam", "Grad-CAM", "the deepest map, its channels weighted by their mean gradient", _GRAD_CAM),
            _cam(
                "layercam",
                "LayerCAM",
                "the deepest map, each value weighted by its positive gradient",
                "Jiang et al., LayerCAM, IEEE Transactions on Image Processing 30, 2021",
            ),
            _cam(
                "hirescam",
                "HiResCAM",
                "the deepest map, each value weighted by its gradient",
                "Draelos and Carin, HiResCAM, 2020 (arXiv 2011.08891)",
            ),
            _cam(
                "refinecam",
                "RefineCAM",
                "the product of the Grad-CAM++ of several resolutions",
                "How to Evaluate and Refine your CAM, 2026 (arXiv 2605.14641); Grad-CAM++: Chattopadhyay et al., WACV "
                "2018 (arXiv 1710.11063)",
            ),
            _gradient(
                "input-gradient",
                "input gradient",
                "where the score changes most with the pixels",
                "Simonyan et al., Deep Inside Convolutional Networks, 2013 (arXiv 1312.6034)",
            ),
            _gradient(
                "guided-backprop",
                "guided backpropagation",
                "the same, with negative gradients set to 0 at each ReLU",
                "Springenberg et al., Striving for Simplicity, 2014 (arXiv 1412.6806)",
            ),
            _gradient(
                "smoothgrad",
                "SmoothGrad",
                "the mean of input gradients of noisy copies",
                "Smilkov et al., SmoothGrad, 2017 (arXiv 1706.03825)",
            ),
            Entry(
                "lrp",
                "LRP",
                "the pixels' shares in the score, by the rules EpsilonPlusFlat",
                "Bach et al., On Pixel-Wise Explanations, PLOS ONE 10(7), 2015; rules: Kohlbrenner et al., IJCNN 2020 "
                "(arXiv 1910.09840)",
                "zennit",
                needs_classifier=True,
            ),
            Entry("centre", "centre", "the centre of the image"),
            Entry("edge", "edges", "steep changes of the image's luminance"),
            Entry("uniform", "noise", "nothing: noise that knows nothing of the image"),
        )
    }
)
"""All methods by name, in the order of `vbp.choices.METHOD_NAMES`."""
