"""The project's own demo models: drawn images, two small networks trained on them, and their weights.

`draw` and `scenes` need numpy and Pillow only; `network`, `detector` and their training need torch. Nothing is imported
here, so that drawing an image set never loads torch.
"""
