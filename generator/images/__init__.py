"""Images and their pixels: as training made them and as the served step makes them."""
