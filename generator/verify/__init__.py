"""The gate: source, ONNX, served classifier and served JPEG ensemble must agree on the same images."""

from generator.verify.gate import GateReport, run_gate
from generator.verify.images import ImageSet, default_images, read_images
from generator.verify.reference import Reference, make_reference
from generator.verify.subject import Subject

__all__ = [
    "GateReport",
    "ImageSet",
    "Reference",
    "Subject",
    "default_images",
    "make_reference",
    "read_images",
    "run_gate",
]
