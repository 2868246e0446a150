"""The GPU: what it is, its memory, streams, graphs and energy."""
