"""The models that come with cnnc: one architecture a file."""
