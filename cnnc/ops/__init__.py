"""The ops, a file a family. Importing this package registers them all."""

from cnnc.ops.activation import (
    Abs,
    Clip,
    Dropout,
    Elu,
    Exp,
    Gelu,
    HardSigmoid,
    HardSwish,
    LeakyRelu,
    Log,
    LogSoftmax,
    Neg,
    Prelu,
    Relu,
    Selu,
    Sigmoid,
    Silu,
    Softmax,
    Sqrt,
    Step,
    Tanh,
)
from cnnc.ops.conv import Conv, Deconv, Local
from cnnc.ops.detection import Anchors, ClipBoxes, Decode, Nms, RoiAlign, RoiAlignPyramid, RoiPool, Top
from cnnc.ops.elementwise import Add, Div, Maximum, Minimum, Mul, Sub
from cnnc.ops.fused import Fused
from cnnc.ops.linear import Linear, MatMul, Rbf, Scale
from cnnc.ops.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, Lrn, Normalize
from cnnc.ops.pool import AdaptiveAvgPool, AvgPool, GlobalAvgPool, GlobalMaxPool, L2Pool, MaxPool, Unpool
from cnnc.ops.reduce import ReduceMax, ReduceMean, ReduceMin, ReduceSum
from cnnc.ops.resize import Crop, Resize, Upsample
from cnnc.ops.shape import (
    Cast,
    ChannelShuffle,
    Concat,
    Constant,
    Flatten,
    Pad,
    PixelShuffle,
    Reshape,
    Slice,
    Take,
    Transpose,
)

__all__ = [
    "Abs", "AdaptiveAvgPool", "Add", "Anchors", "AvgPool", "BatchNorm", "Cast", "ChannelShuffle", "Clip", "ClipBoxes",
    "Concat", "Constant", "Conv", "Crop", "Decode", "Deconv", "Div", "Dropout", "Elu", "Exp", "Flatten", "Fused",
    "Gelu", "GlobalAvgPool", "GlobalMaxPool", "GroupNorm", "HardSigmoid", "HardSwish", "InstanceNorm", "L2Pool",
    "LayerNorm", "LeakyRelu", "Linear", "Local", "Log", "LogSoftmax", "Lrn", "MatMul", "MaxPool", "Maximum", "Minimum",
    "Mul", "Neg", "Nms", "Normalize", "Pad", "PixelShuffle", "Prelu", "Rbf", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceSum", "Relu", "Reshape", "Resize", "RoiAlign", "RoiAlignPyramid", "RoiPool", "Scale", "Selu", "Sigmoid",
    "Silu", "Slice", "Softmax", "Sqrt", "Step", "Sub", "Take", "Tanh", "Top", "Transpose", "Unpool", "Upsample",
]  # fmt: skip
