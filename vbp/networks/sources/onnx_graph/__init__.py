"""The graph of an ONNX model as a network of PyTorch: ``graph.rebuilt``; the rules for operators by what they do."""
