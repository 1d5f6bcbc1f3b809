"""Bytes to pixels and back: decoding, overlays, encoding. Knows no paths, no models.

``from vbp.images.decode import decode`` and so on: the names are imported from their files, so that reading a mask
back loads no decoder, and drawing one no torch.
"""
