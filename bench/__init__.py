"""Benchmarks: pytest bench/ --benchmark-only, and python bench/gpu_check.py on a CUDA machine."""
