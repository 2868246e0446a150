"""From the name of an image model to a Triton model repository that is proved to work."""

__version__ = "0.1.0"
