"""Every way an op refuses its operands or its attributes: the code, where it points, and what it says."""

from __future__ import annotations

import re

import pytest

from cnnc import ops
from cnnc.ir.attrs import AttrError
from cnnc.ir.op import OpError
from cnnc.ir.types import TensorType

IMAGE = "f32[N, 64, 56, 56]"


@pytest.mark.parametrize(
    ("op", "operands", "code", "operand", "axis", "message"),
    [
        # ranks
        (ops.Conv(8, 3), ["f32[N, 64]"], "E0301", 0, None, "`conv` works on [N, C, H, W], not on f32[N, 64]"),
        (ops.MaxPool(2), ["f32[N, 64, 56]"], "E0301", 0, None, "`maxpool` works on [N, C, H, W]"),
        (ops.BatchNorm(), ["f32[N]"], "E0301", 0, None, "`bn` works on [N, C, ...], not on f32[N]"),
        (ops.Prelu(), ["f32[N]"], "E0301", 0, None, "`prelu` works on [N, C, ...], not on f32[N]"),
        (ops.InstanceNorm(), ["f32[N, 4]"], "E0301", 0, None, "`instance_norm` works on [N, C, ...] with places"),
        (ops.Lrn(5), ["f32[N, 64]"], "E0301", 0, None, "`lrn` works on [N, C, H, W], not on f32[N, 64]"),
        (ops.ChannelShuffle(2), ["f32[N, 64]"], "E0301", 0, None, "`shuffle` works on [N, C, H, W]"),
        (ops.Linear(10), [IMAGE], "E0301", 0, None, "`linear` works on [N, F], not on f32[N, 64, 56, 56]"),
        (ops.Rbf(10), ["f32[84]"], "E0301", 0, None, "`rbf` works on [N, F], not on f32[84]"),
        (ops.MatMul(), [IMAGE, "f32[8]"], "E0301", 1, None, "`matmul` works on matrices [..., I, K], not on f32[8]"),
        (ops.Concat(), [IMAGE, "f32[N, 64]"], "E0301", 1, None, "branches of `concat` have different ranks"),
        (ops.Reshape((1,)), ["f32[]"], "E0301", 0, None, "`reshape` keeps axis 0, but f32[] has none"),
        (ops.Transpose((1, 0)), [IMAGE], "E0301", 0, None, "`transpose` orders 2 axes, but f32[N, 64, 56, 56] has 4"),
        (ops.Unpool(2), ["f32[N, 64]", IMAGE], "E0301", 0, None, "`unpool` works on [N, C, H, W]"),
        (ops.Unpool(2), [IMAGE, "f32[N, 64]"], "E0301", 1, None, "`unpool` works on [N, C, H, W]"),
        (ops.RoiPool(7), ["f32[N, 64]", "f32[N, 9, 5]"], "E0301", 0, None, "`roi_pool` works on [N, C, H, W]"),
        (ops.RoiAlign(7), ["f32[N, 64]", "f32[N, 9, 5]"], "E0301", 0, None, "`roi_align` works on [N, C, H, W]"),
        (ops.RoiAlignPyramid(7, [1]), ["f32[N, 9, 5]", "f32[N, 64]"], "E0301", 1, None, "works on [N, C, H, W]"),
        (ops.RoiAlignPyramid(7, [1, 2]), ["f32[N, 9, 5]", IMAGE, "f32[N, 64]"], "E0301", 2, None,
         "`roi_align_pyramid` works on [N, C, H, W], not on f32[N, 64]"),
        (ops.Decode(), ["f32[N, 9, 4]", "f32[N, 4]"], "E0301", 1, None, "`decode` works on [N, C, H, W]"),
        (ops.ClipBoxes(), ["f32[N, 9, 4]", "f32[N, 3]"], "E0301", 1, None, "`clip_boxes` works on [N, C, H, W]"),
        (ops.Nms(9, 9, 0.5), ["f32[N, 9, 4]", "f32[N, 1]"], "E0301", 1, None, "`nms` works on [N, C, H, W]"),
        (ops.Crop(1), [IMAGE, "f32[N, 2]"], "E0301", 1, None, "`crop` works on [N, C, H, W]"),
        (ops.Resize(), [IMAGE, "f32[N, 2]"], "E0301", 1, None, "`resize` works on [N, C, H, W]"),
        # operands
        (ops.Relu(), [], "E0302", 0, None, "`relu` takes 1 operand (x), not 0"),
        (ops.Relu(), [IMAGE, IMAGE], "E0302", 0, None, "`relu` takes 1 operand (x), not 2"),
        (ops.Sub(), [IMAGE], "E0302", 0, None, "`sub` takes 2 operands (x, y), not 1"),
        (ops.Concat(), [], "E0302", 0, None, "`concat` takes 1 or more operands, not 0"),
        (ops.Resize(), [IMAGE], "E0302", 0, None,
         "`resize` takes a size or a second operand to be as large as, not neither"),
        (ops.Resize(7), [IMAGE, IMAGE], "E0302", 0, None, "to be as large as, not both"),
        (ops.RoiAlignPyramid(7, [0.25]), ["f32[N, 9, 5]", IMAGE, IMAGE], "E0302", 0, None,
         "has 1 scales, but 2 levels"),
        # element types
        (ops.Add(), [IMAGE, "f16[N, 64, 56, 56]"], "E0303", 1, None, "different element types: f32 and f16"),
        # empty results
        (ops.Slice(40, -40), [IMAGE], "E0304", 0, 1, "dimension 1 is empty"),
        (ops.Slice(64, 70), [IMAGE], "E0304", 0, 1, "`slice` gives f32[N, 0, 56, 56]: dimension 1 is empty"),
        (ops.Deconv(8, 1, pad=30), [IMAGE], "E0304", 0, 2, "`deconv` gives f32[N, 8, -4, -4]: dimension 2 is empty"),
        # what must be known
        (ops.Conv(8, 3), ["f32[N, C, H, W]"], "E0305", 0, 1, "`conv` needs a known number of channels, not C"),
        (ops.Scale(), ["f32[N, C]"], "E0305", 0, 1, "`scale` needs a known number of channels, not C"),
        (ops.Local(8, 3), ["f32[N, C, 9, 9]"], "E0305", 0, 1, "`local` needs a known number of channels, not C"),
        (ops.InstanceNorm(), ["f32[N, C, H]"], "E0305", 0, 1, "`instance_norm` needs a known number of channels"),
        (ops.Linear(10), ["f32[N, 64*H]"], "E0305", 0, 1, "so it needs a known number of them, not 64*H"),
        (ops.Local(8, 3), ["f32[N, 3, H, 9]"], "E0306", 0, 2,
         "`local` needs a known size to have weights for each place"),
        (ops.Local(8, 3), ["f32[N, 3, 9, W]"], "E0306", 0, 3, "but dimension 3 of f32[N, 3, 9, W] is W"),
        (ops.LayerNorm(), ["f32[N, 3, H]"], "E0306", 0, 2, "`layer_norm` needs a known size to have a weight for each"),
        (ops.Take([1], axis=2), ["f32[N, 3, H]"], "E0306", 0, 2,
         "`take` needs a known size to take entries by position"),
        (ops.Slice(0, -1, axis=2), ["f32[N, 3, H]"], "E0306", 0, 2, "`slice` needs a known size to count from the end"),
        (ops.Slice(-1, 5, axis=2), ["f32[N, 3, H]"], "E0306", 0, 2, "`slice` needs a known size to count from the end"),
        # lists of another length, boxes
        (ops.Normalize([1, 2], 1), [IMAGE], "E0307", 0, 1, "`mean` of `normalize` has 2 numbers for 64 channels"),
        (ops.Normalize(0, [1, 2, 3]), [IMAGE], "E0307", 0, 1, "`std` of `normalize` has 3 numbers for 64 channels"),
        (ops.RoiPool(7), [IMAGE, "f32[N, 9, 6]"], "E0308", 1, None, "`roi_pool` takes boxes [N, K, 4 or 5], not"),
        (ops.RoiAlign(7), [IMAGE, "f32[N, 4]"], "E0308", 1, None, "`roi_align` takes boxes [N, K, 4 or 5], not"),
        (ops.RoiAlignPyramid(7, [1]), ["f32[N, 9, 6]", IMAGE], "E0308", 0, None, "takes boxes [N, K, 4 or 5], not"),
        (ops.ClipBoxes(), ["f32[N, 9, 5]", IMAGE], "E0308", 0, None, "`clip_boxes` takes boxes [N, K, 4], not"),
        (ops.Decode(), ["f32[N, 9, 5]", "f32[N, 4, 3, 3]"], "E0308", 0, None, "`decode` takes boxes [N, K, 4], not"),
        (ops.Nms(9, 9, 0.5), ["f32[N, 9, 5]", "f32[N, 1, 3, 3]"], "E0308", 0, None, "`nms` takes boxes [N, K, 4], not"),
        (ops.Top(9), ["f32[N, 9, 5]", "f32[N, 9, 4]"], "E0308", 1, None, "`top` takes boxes [N, K, 5], not"),
        (ops.Top(9), ["f32[]"], "E0308", 0, None, "`top` takes boxes [N, K, 5], not f32[]"),
        (ops.Top(9), ["f32[N, 9, 5]", "f32[]"], "E0308", 1, None, "`top` takes boxes [N, K, 5], not f32[]"),
        # windows
        (ops.Conv(8, 7, pad=1), ["f32[N, 3, 32, 4]"], "E0310", 0, 3, "spans 7, but the padded width is 4 + 1 + 1 = 6"),
        (ops.Conv(8, 3, dilation=9), ["f32[N, 3, 9, W]"], "E0310", 0, 2,
         "spans 19, but the padded height is 9 + 0 + 0 = 9"),
        (ops.MaxPool(3, ceil=True), ["f32[N, 3, 2, 2]"], "E0310", 0, 2, "kernel of `maxpool` spans 3"),
        (ops.Unpool(2), ["f32[N, 3, 1, 1]", "f32[N, 3, 1, 1]"], "E0310", 1, 2, "kernel of `unpool` spans 2"),
        # groups
        (ops.Conv(8, 3, groups=4), ["f32[N, 6, H, W]"], "E0311", 0, 1,
         "`groups` of `conv` is 4, which does not divide 6"),
        (ops.Deconv(8, 3, groups=4), ["f32[N, 6, H, W]"], "E0311", 0, 1, "does not divide 6 channels"),
        (ops.GroupNorm(5), [IMAGE], "E0311", 0, 1, "`groups` of `group_norm` is 5, which does not divide 64 channels"),
        (ops.ChannelShuffle(5), [IMAGE], "E0311", 0, 1, "`groups` of `shuffle` is 5"),
        (ops.PixelShuffle(3), [IMAGE], "E0311", 0, 1, "`pixel_shuffle` by 3 needs a multiple of 9 channels, not 64"),
        # dims that disagree
        (ops.Add(), ["f32[N, 256, 56, 56]", IMAGE], "E0312", 1, 1,
         "branches of `add` have different channels: 256 and 64"),
        (ops.Add(), [IMAGE, "f32[]", "f32[32, 1, 1]"], "E0312", 2, 0,
         "branches of `add` have different channels: 64 and 32"),
        (ops.Div(), [IMAGE, "f32[N, 3, 56, 56]"], "E0312", 1, 1, "operands of `div` have different channels: 64 and 3"),
        (ops.Mul(), [IMAGE, "f32[N, 64, 28, 56]"], "E0313", 1, 2,
         "branches of `mul` have different heights: 56 and 28"),
        (ops.Sub(), [IMAGE, "f32[N, 64, 1, W]"], "E0313", 1, 3, "operands of `sub` have different widths: 56 and W"),
        (ops.Maximum(), [IMAGE, "f32[8, 1, 1, 1]"], "E0313", 1, 0,
         "branches of `maximum` have different batch sizes: N and 8"),
        (ops.Add(), ["f32[3, 4, 5]", "f32[3, 4, 6]"], "E0313", 1, 2, "different sizes of dimension 2: 5 and 6"),
        (ops.Add(), ["f32[3]", "f32[4]"], "E0313", 1, 0, "different sizes of dimension 0: 3 and 4"),
        (ops.Add(), ["f32[N, 3]", "f32[N, 4]"], "E0312", 1, 1, "branches of `add` have different channels: 3 and 4"),
        (ops.Add(), ["f32[N, 3]", "f32[8, 3]"], "E0313", 1, 0, "branches of `add` have different batch sizes: N and 8"),
        (ops.Concat(), [IMAGE, IMAGE, "f32[N, 8, 56, 28]"], "E0313", 2, 3,
         "branches of `concat` have different widths: 56 and 28"),
        (ops.Concat(2), [IMAGE, "f32[N, 8, 56, 56]"], "E0312", 1, 1,
         "branches of `concat` have different channels: 64 and 8"),
        (ops.Unpool(2), [IMAGE, "f32[N, 64, 56, 112]"], "E0313", 1, 2,
         "operand and pooled source of `unpool` have different heights: 56 and 28"),
        (ops.RoiPool(7), [IMAGE, "f32[8, 9, 4]"], "E0313", 1, 0,
         "operands of `roi_pool` have different batch sizes: N and 8"),
        (ops.RoiAlignPyramid(7, [1, 2]), ["f32[N, 9, 5]", IMAGE, "f32[N, 8, 28, 28]"], "E0312", 2, 1,
         "levels of `roi_align_pyramid` have different channels: 64 and 8"),
        (ops.RoiAlignPyramid(7, [1, 2]), ["f32[N, 9, 5]", IMAGE, "f32[8, 64, 28, 28]"], "E0313", 2, 0,
         "levels of `roi_align_pyramid` have different batch sizes: N and 8"),
        (ops.Decode(), ["f32[N, 9, 4]", "f32[N, 4, 4, 4]"], "E0313", 1, None,
         "`decode` needs 36 values for 9 boxes, not 64"),
        (ops.Nms(9, 9, 0.5), ["f32[N, 9, 4]", "f32[N, 1, 4, 4]"], "E0313", 1, None,
         "`nms` needs 9 values for 9 boxes, not 16"),
        (ops.Decode(), ["f32[8, 9, 4]", "f32[N, 4, 3, 3]"], "E0313", 1, 0,
         "operands of `decode` have different batch sizes: 8 and N"),
        (ops.Nms(9, 9, 0.5), ["f32[8, 9, 4]", "f32[N, 1, 3, 3]"], "E0313", 1, 0,
         "operands of `nms` have different batch sizes: 8 and N"),
        (ops.ClipBoxes(), ["f32[8, 9, 4]", IMAGE], "E0313", 1, 0,
         "operands of `clip_boxes` have different batch sizes: 8 and N"),
        (ops.Top(9), ["f32[N, 9, 5]", "f32[8, 9, 5]"], "E0313", 1, 0,
         "operands of `top` have different batch sizes: N and 8"),
        # reshapes, axes, positions
        (ops.Reshape((7, 7)), [IMAGE], "E0314", 0, None, "cannot make [7, 7] of [64, 56, 56]: 49 elements from 200704"),
        (ops.Reshape((-1, 5)), [IMAGE], "E0314", 0, None,
         "cannot make [-1, 5] of [64, 56, 56]: a multiple of 5 elements from 200704"),
        (ops.Reshape((64, 49)), ["f32[N, 64, H, W]"], "E0314", 0, None,
         "cannot make [64, 49] of [64, H, W]: 3136 elements from 64*H*W"),
        (ops.Softmax(4), [IMAGE], "E0315", 0, None, "`axis` of `softmax` is 4, but f32[N, 64, 56, 56] has axes 0 to 3"),
        (ops.LogSoftmax(), ["f32[N]"], "E0315", 0, None, "`axis` of `log_softmax` is 1, but f32[N] has axis 0 only"),
        (ops.LogSoftmax(2), ["f32[N, 5]"], "E0315", 0, None, "is 2, but f32[N, 5] has axes 0 to 1"),
        (ops.Softmax(0), ["f32[]"], "E0315", 0, None, "`axis` of `softmax` is 0, but f32[] has no axes"),
        (ops.Concat(4), [IMAGE], "E0315", 0, None, "`axis` of `concat` is 4"),
        (ops.Slice(0, 1, axis=4), [IMAGE], "E0315", 0, None, "`axis` of `slice` is 4"),
        (ops.Take(0, axis=4), [IMAGE], "E0315", 0, None, "`axis` of `take` is 4"),
        (ops.Flatten(4), [IMAGE], "E0315", 0, None, "`axis` of `flatten` is 4"),
        (ops.LayerNorm(4), [IMAGE], "E0315", 0, None, "`axis` of `layer_norm` is 4"),
        (ops.ReduceSum([2, 4]), [IMAGE], "E0315", 0, None, "`axes` of `reduce_sum` is 4"),
        (ops.MatMul(), ["f32[N, 8]", "f32[9, 4]"], "E0316", 1, 0, "the left has 8 columns, the right 9 rows"),
        (ops.MatMul(), ["f32[2, 8, 4]", "f32[3, 4, 5]"], "E0313", 1, 0,
         "operands of `matmul` have different sizes of dimension 0: 2 and 3"),
        (ops.Take([3, 64]), [IMAGE], "E0317", 0, 1, "`indices` of `take` has 64, but the last of 64 positions is 63"),
        (ops.Crop((9, 0)), [IMAGE, "f32[N, 1, 48, 48]"], "E0318", 0, 2,
         "`crop` takes 48 rows after the first 9, but there are 56"),
        (ops.Crop(0), [IMAGE, "f32[N, 1, 48, 64]"], "E0318", 0, 3,
         "`crop` takes 64 columns after the first 0, but there are 56"),
        (ops.Crop((0, 9)), [IMAGE, "f32[N, 1, 48, 48]"], "E0318", 0, 3,
         "`crop` takes 48 columns after the first 9, but there are 56"),
        (ops.Upsample(9999), [IMAGE], "E0502", 0, None, "elements"),
    ],
)  # fmt: skip
def test_operands_are_refused(op, operands, code, operand, axis, message):
    with pytest.raises(OpError, match=re.escape(message)) as e:
        op.result(*map(TensorType.parse, operands))
    assert (e.value.code, e.value.operand, e.value.axis) == (code, operand, axis)


@pytest.mark.parametrize(
    ("op", "operands", "help"),
    [
        (ops.Linear(10), ["f32[N, 4, 8]"], "put `flatten` before it"),
        (ops.Linear(10), ["f32[84]"], None),
        (ops.Linear(10), ["f32[N, H]"], "pool to a fixed size before `flatten`"),
        (ops.Conv(8, 3), ["f32[N, C, H, W]"], "declare it, as in `image: f32[N, 3, H, W]`"),
        (ops.Conv(8, 7), ["f32[N, 3, 4, 4]"], "use a kernel that spans at most 4, more padding, or a larger input"),
        (ops.Add(), [IMAGE, "f32[N, 64, H, 56]"], "declare an input size that divides evenly, such as `32*h=224`"),
        (ops.Add(), ["f32[N, 64, H, 56]", IMAGE], "declare an input size that divides evenly, such as `32*h=224`"),
        (ops.Add(), ["f32[N, C, 56, 56]", IMAGE], None),
        (ops.Add(), [IMAGE, "f32[N, 64, 28, 56]"], None),
        (ops.Add(), [IMAGE, "f16[N, 64, 56, 56]"], "convert one of them: `cast(f32)`"),
        (ops.Reshape((64, 49)), ["f32[N, 64, H, W]"], "give the input a fixed size, or pool to one"),
        (ops.Reshape((7, 7)), [IMAGE], None),
        (ops.Crop((9, 0)), [IMAGE, "f32[N, 1, 48, 48]"], "the offset can be at most 8"),
        (ops.Crop(0), [IMAGE, "f32[N, 1, 64, 48]"], None),
        (ops.Normalize([1, 2], 1), [IMAGE], "give 64 of them, or one for all channels"),
        (ops.Local(8, 3), ["f32[N, 3, H, 9]"], "give the input a fixed size, or bind it"),
    ],
)  # fmt: skip
def test_refusals_say_what_would_help(op, operands, help):
    with pytest.raises(OpError) as e:
        op.result(*map(TensorType.parse, operands))
    assert (e.value.help is None) == (help is None)
    assert (help or "") in (e.value.help or "")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ops.Conv(0, 3), "`c` of `conv` expects an integer of at least 1, not 0"),
        (lambda: ops.Conv(8, 3, stride=0), "`s` of `conv` expects an integer of at least 1"),
        (lambda: ops.Conv(8, 3, dilation=[1, -1]), "`dilation` of `conv` expects an integer of at least 1"),
        (lambda: ops.Conv(8, 3, groups=0), "`groups` of `conv` expects an integer of at least 1, not 0"),
        (lambda: ops.Conv(8, 3, groups=3), "`groups` of `conv` is 3: it does not divide its 8 channels"),
        (lambda: ops.Conv(8, 4, pad="half"), "`pad` of `conv`: half needs an odd kernel, not one that spans 4"),
        (lambda: ops.Conv(8, 3, pad="same"), '`pad` of `conv` expects a number, [rows, columns] or'),
        (lambda: ops.Local(8, 2, pad="half"), "`pad` of `local`: half needs an odd kernel, not one that spans 2"),
        (lambda: ops.Deconv(8, 3, groups=3), "`groups` of `deconv` is 3: it does not divide its 8 channels"),
        (lambda: ops.Deconv(8, 3, pad="same_upper"), "`pad` of `deconv` expects a number"),
        (lambda: ops.Deconv(8, 2, pad="half"), "`pad` of `deconv`: half needs an odd kernel, not one that spans 2"),
        (lambda: ops.Deconv(8, 3, stride=2, out_pad=2),
         "`out_pad` of `deconv` is 2: it must be less than the stride or"),
        (lambda: ops.MaxPool(0),
         "`k` of `maxpool` expects an integer of at least 1, or two of them for rows and columns, not 0"),
        (lambda: ops.MaxPool(2, 0), "`s` of `maxpool` expects an integer of at least 1"),
        (lambda: ops.MaxPool(2, pad=2), "`pad` of `maxpool` is 2: it must be less than the kernel's span, 2"),
        (lambda: ops.AvgPool((3, 2), pad=(2, 2)), "`pad` of `avgpool` is 2: it must be less than the kernel's span, 2"),
        (lambda: ops.L2Pool(2, pad="half"), "`pad` of `l2pool`: half needs an odd kernel, not one that spans 2"),
        (lambda: ops.Dropout(1), "`p` of `dropout` expects a finite number at least 0 and below 1, not 1"),
        (lambda: ops.Clip(6, 0), "`low` of `clip` is 6, above its `high`, 0"),
        (lambda: ops.Clip(0, float("nan")), "`high` of `clip` expects a finite number, not nan"),
        (lambda: ops.Gelu("erf"), '`approx` of `gelu` expects one of "none", "tanh", not "erf"'),
        (lambda: ops.Softmax(-1), "`axis` of `softmax` expects an integer of at least 0, not -1"),
        (lambda: ops.BatchNorm(eps=0), "`eps` of `bn` expects a finite number above 0, not 0"),
        (lambda: ops.Normalize(0, 0), "`std` of `normalize` expects a finite number above 0, not 0"),
        (lambda: ops.Slice(5, 5), "`stop` of `slice` is 5: it must be above `start`, 5"),
        (lambda: ops.Slice(0, 0), "`stop` of `slice` is 0: it must be above `start`, 0"),
        (lambda: ops.Slice(-1, -1), "`stop` of `slice` is -1: it must be above `start`, -1"),
        (lambda: ops.Slice(-1, -2), "`stop` of `slice` is -2: it must be above `start`, -1"),
        (lambda: ops.Slice(0, 5, step=0), "`step` of `slice` expects an integer of at least 1, not 0"),
        (lambda: ops.Reshape((2, 0)), "`dims` of `reshape` has a 0"),
        (lambda: ops.Reshape((-1, -1)), "`dims` of `reshape` has -1 more than once: [-1, -1]"),
        (lambda: ops.Reshape(()), "`dims` of `reshape` expects a list of at least 1"),
        (lambda: ops.Transpose((0, 2)), "`axes` of `transpose` are [0, 2], not 0 to 1 in some order"),
        (lambda: ops.ReduceMax([2, 2]), "`axes` of `reduce_max` names an axis twice: [2, 2]"),
        (lambda: ops.ReduceMax([-1]), "`axes` of `reduce_max` expects"),
        (lambda: ops.Constant([1, 2]), "`values` of `constant` has 2 numbers, but shape [] has 1 elements"),
        (lambda: ops.Constant([1, 2], [3]), "`values` of `constant` has 2 numbers, but shape [3] has 3 elements"),
        (lambda: ops.Constant([float("nan")]), "`values` of `constant` expects a finite number, not nan"),
        (lambda: ops.Cast("f64"), '`dtype` of `cast` expects f32, f16 or bf16, not "f64"'),
        (lambda: ops.Upsample(2, align_corners=True), '`align_corners` of `upsample` goes with mode="bilinear"'),
        (lambda: ops.Resize(2, align_corners=True), '`align_corners` of `resize` goes with mode="bilinear"'),
        (lambda: ops.Crop(-1), "`offset` of `crop` expects an integer of at least 0"),
        (lambda: ops.Resize(0), "`size` of `resize` expects an integer of at least 1"),
        (lambda: ops.Linear(10, init="xavier"), '`init` of `linear` expects one of he_normal, glorot_uniform'),
    ],
)  # fmt: skip
def test_attributes_are_refused(make, message):
    with pytest.raises(AttrError, match=re.escape(message)):
        make()
