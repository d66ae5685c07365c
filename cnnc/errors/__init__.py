"""The error catalogue: one page for each code, shown by `cnnc explain`."""
