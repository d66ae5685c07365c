"""The ops, a file a family. Importing this package registers them all."""

from cnnc.ops.conv import Conv, Deconv, Local

__all__ = ["Conv", "Deconv", "Local"]
