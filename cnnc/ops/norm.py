"""Normalisations."""

from __future__ import annotations

from collections.abc import Mapping

from cnnc.ir.attrs import Bool, Float, Int, ListOf, attr
from cnnc.ir.op import ONES, ZEROS, Op, OpError, ParamSpec, register
from cnnc.ir.types import TensorType
from cnnc.ops.checks import channels, check_axis, check_groups, images, known


@register
class BatchNorm(Op):
    """y = weight[c] * (x - running_mean[c]) / sqrt(running_var[c] + eps) + bias[c].

    In training the mean and the (biased) variance are those of the batch over every axis but c, and each running value
    becomes (1 - momentum) * itself + momentum * the batch's, the variance unbiased.

    Shapes: x [N, C, ...], weight, bias, running_mean, running_var [C] -> [N, C, ...].
    Source: Ioffe & Szegedy 2015.
    """

    name = "bn"
    eps: float = attr(Float(above=0), "eps", default=1e-5)
    momentum: float = attr(Float(low=0), "momentum", default=0.1)

    def params(self, x: TensorType) -> Mapping[str, ParamSpec]:
        shape = (channels(x, self.name),)
        return {
            "weight": ParamSpec(shape, ONES),
            "bias": ParamSpec(shape, ZEROS),
            "running_mean": ParamSpec(shape, ZEROS, trainable=False),
            "running_var": ParamSpec(shape, ONES, trainable=False),
        }

    def infer(self, x: TensorType) -> TensorType:
        channels(x, self.name)
        return x


@register
class Lrn(Op):
    """Local response normalisation: y = x / (k + alpha/m * S)^beta, S a sum of squares over m neighbours.

    Across channels m = n and S sums channels c - n//2 to c - n//2 + n - 1 at the same place; within a channel m = n*n
    and S sums the n x n window whose first row and column lie n//2 before the place. Outside x counts as zero.

    Shapes: x [N, C, H, W] -> the same.
    Source: Krizhevsky et al. 2012, where alpha is not divided by n; the scaling here is PyTorch's, ONNX's and Caffe's.
    """

    name = "lrn"
    size: int = attr(Int(1), "n")
    alpha: float = attr(Float(), "alpha", default=1e-4)
    beta: float = attr(Float(), "beta", default=0.75)
    k: float = attr(Float(), "k", default=1.0)
    within: bool = attr(Bool(), "within", default=False)

    def infer(self, x: TensorType) -> TensorType:
        images(x, self.name)
        return x


@register
class LayerNorm(Op):
    """y = weight * (x - mean) / sqrt(var + eps) + bias, mean and (biased) var over all axes from `axis` on.

    Shapes: x of any shape, weight and bias of x's shape from `axis` on (which must be known) -> x's shape.
    Source: Ba et al. 2016.
    """

    name = "layer_norm"
    axis: int = attr(Int(0), "axis", default=1)
    eps: float = attr(Float(above=0), "eps", default=1e-5)
    affine: bool = attr(Bool(), "affine", default=True)

    def params(self, x: TensorType) -> Mapping[str, ParamSpec]:
        if not self.affine:
            return {}
        axes = range(self.axis, x.rank)
        return _affine(*(known(x, axis, self.name, "to have a weight for each place") for axis in axes))

    def infer(self, x: TensorType) -> TensorType:
        check_axis(x, self.axis, self.name)
        self.params(x)
        return x


@register
class GroupNorm(Op):
    """y = weight[c] * (x - mean) / sqrt(var + eps) + bias[c], mean and (biased) var over a sample's group of channels.

    Shapes: x [N, C, ...], C a multiple of `groups`; weight, bias [C] -> [N, C, ...].
    Source: Wu & He 2018.
    """

    name = "group_norm"
    groups: int = attr(Int(1), "groups")
    eps: float = attr(Float(above=0), "eps", default=1e-5)
    affine: bool = attr(Bool(), "affine", default=True)

    def params(self, x: TensorType) -> Mapping[str, ParamSpec]:
        return _affine(channels(x, self.name)) if self.affine else {}

    def infer(self, x: TensorType) -> TensorType:
        check_groups(self.name, channels(x, self.name), self.groups)
        return x


@register
class InstanceNorm(Op):
    """y = weight[c] * (x - mean) / sqrt(var + eps) + bias[c], mean and (biased) var over the places of one channel.

    Shapes: x [N, C, ...] with at least one axis after C; weight, bias [C] -> [N, C, ...].
    Source: Ulyanov et al. 2016.
    """

    name = "instance_norm"
    eps: float = attr(Float(above=0), "eps", default=1e-5)
    affine: bool = attr(Bool(), "affine", default=True)

    def params(self, x: TensorType) -> Mapping[str, ParamSpec]:
        return _affine(channels(x, self.name)) if self.affine else {}

    def infer(self, x: TensorType) -> TensorType:
        channels(x, self.name)
        if x.rank < 3:
            raise OpError("E0301", f"`instance_norm` works on [N, C, ...] with places after C, not on {x}")
        return x


@register
class Normalize(Op):
    """y = (x - mean[c]) / std[c], with constants: the preprocessing a network was trained with.

    Shapes: x [N, C, ...]; mean and std have C numbers, or one for all channels -> [N, C, ...].
    """

    name = "normalize"
    mean: tuple[float, ...] = attr(ListOf(Float()), "mean")
    std: tuple[float, ...] = attr(ListOf(Float(above=0)), "std")

    def infer(self, x: TensorType) -> TensorType:
        c = channels(x, self.name)
        for attribute, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, c):
                raise OpError(
                    "E0307",
                    f"`{attribute}` of `normalize` has {len(values)} numbers for {c} channels",
                    axis=1,
                    help=f"give {c} of them, or one for all channels",
                )
        return x


def _affine(*shape: int) -> dict[str, ParamSpec]:
    return {"weight": ParamSpec(shape, ONES), "bias": ParamSpec(shape, ZEROS)}
