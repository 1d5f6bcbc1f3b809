"""Bytes to pixels and back: decoding, overlays, encoding; without paths and models.

Names are imported from their modules (``from vbp.images.decode import decode``), so that reading a mask
loads no decoder, and drawing one loads no torch.
"""
