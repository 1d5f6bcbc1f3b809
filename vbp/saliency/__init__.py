"""The method: computes masks from a CNN and pixels."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vbp.explainer import Explainer
    from vbp.saliency.visualbackprop import VisualBackProp

__all__ = ["Explainer", "VisualBackProp"]


def __getattr__(name: str) -> Any:
    # Imported lazily: importing torch takes seconds, and most commands do not need it.
    if name == "Explainer":
        from vbp.explainer import Explainer

        return Explainer
    if name == "VisualBackProp":
        from vbp.saliency.visualbackprop import VisualBackProp

        return VisualBackProp
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
