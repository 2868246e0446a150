"""How fast the graph and its plans are beside PyTorch and onnxruntime: `trtgen bench`."""
