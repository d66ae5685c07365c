"""cnnc: a compiler for convolutional networks."""
