"""The fused GPU kernels, one file an operation; importable as `tinylm.kernels`."""
