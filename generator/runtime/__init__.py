"""A plan on a GPU, for the gate and, copied as `trtgen_runtime`, for the tensorrt backend of the pip server.

That runs without trtgen: TensorRT, cuda-python and numpy are imported here, and of trtgen only `generator.tensor`, by a
relative import.
"""
