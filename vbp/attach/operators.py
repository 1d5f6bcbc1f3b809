"""ONNX's operators by what they mean for VisualBackProp."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto

SIGNED_BY_ACTIVATION: Mapping[str, bool] = {
    **dict.fromkeys(("Relu", "Sigmoid", "HardSigmoid", "Softplus", "ThresholdedRelu"), False),
    **dict.fromkeys(("LeakyRelu", "PRelu", "Elu", "Celu", "Selu", "Gelu", "HardSwish", "Mish", "Swish"), True),
    **dict.fromkeys(("Erf", "Tanh", "Softsign"), True),
}
"""Activations, and whether their output can be negative."""
SOFTMAXES = frozenset(("Softmax", "LogSoftmax"))
ATTENTIONS = frozenset(("Softmax", "Attention", "MultiHeadAttention"))
UNCHANGED = frozenset(("Identity", "Dropout", "Cast", "CastLike", "DequantizeLinear"))
NORMALISATIONS = frozenset(
    ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "LRN")
    + ("LpNormalization", "MeanVarianceNormalization", "RMSNormalization")
)
ADDITIONS = frozenset(("Add", "Sum", "Mean"))
ARITHMETIC = ADDITIONS.union(
    ("Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod"),
    ("Abs", "Ceil", "Exp", "Floor", "Log", "Neg", "Reciprocal", "Round", "Sign", "Sqrt"),
)
POOLINGS = frozenset(("MaxPool", "AveragePool", "LpPool"))
GLOBAL_POOLINGS = frozenset(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"))
REDUCTIONS = frozenset(
    ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd")
    + ("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")
)
PRODUCTS = frozenset(("MatMul", "Gemm"))
KEEPING_PLACES = NORMALISATIONS | {"Add", "Sub", "Mul", "Div", "Cast", "Identity"}
"""Operators that leave every value in its place, in a tensor of any shape."""
INTEGER_CONVOLUTIONS = frozenset(("QLinearConv", "ConvInteger"))
CONVOLUTIONS = INTEGER_CONVOLUTIONS.union(("Conv", "ConvTranspose", "DeformConv"))
"""What must not follow pixels that cannot be followed."""
_METADATA = frozenset(("Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike"))


def data_of(node: NodeProto) -> list[str]:
    """The tensors whose values a node reads, not those whose shape or type it reads."""
    if node.op_type in _METADATA:
        return []
    return list(node.input[:1] if node.op_type == "CastLike" else node.input)
