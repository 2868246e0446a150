"""ONNX: read, exported, wrapped for serving, proved for every batch, lowered to a precision."""
