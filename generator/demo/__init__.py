"""The project's own demo model: drawn images, a small network trained on them, and its weights.

`draw` needs numpy and Pillow only; `network` and `train` need torch. Nothing is imported here, so that
drawing an image set never loads torch.
"""
