"""An ONNX graph with one more output, its VisualBackProp mask: by the package onnx alone, without torch.

`files` reads and writes models, `graph` answers what is in one, `dataflow` follows the pixels through its operators,
`descent` leads the mask down, and `writer` writes that as nodes.
"""
