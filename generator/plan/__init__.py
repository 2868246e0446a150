"""TensorRT plans: building, reading, running and checking them."""
