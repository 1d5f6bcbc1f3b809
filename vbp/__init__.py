"""VisualBackProp saliency masks for image collections of any size."""

__version__ = "0.1.0"
