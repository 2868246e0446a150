"""The gate: source, ONNX, served classifier and served JPEG ensemble must agree on the same images."""

from generator.gate.run import GateReport, run_gate
from generator.gate.subject import Subject
from generator.images.reference import Reference, make_reference
from generator.images.sets import ImageSet, default_images, read_images

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
