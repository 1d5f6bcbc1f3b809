"""The method: a CNN and pixels in, masks out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vbp.explainer import Explainer
    from vbp.saliency.visualbackprop import VisualBackProp

__all__ = ["Explainer", "VisualBackProp"]


def __getattr__(name: str) -> Any:
    # Lazily: importing torch takes seconds, and most commands do without.
    if name == "Explainer":
        from vbp.explainer import Explainer

        return Explainer
    if name == "VisualBackProp":
        from vbp.saliency.visualbackprop import VisualBackProp

        return VisualBackProp
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
