"""Triton's model configurations: values, rendering, checks."""
