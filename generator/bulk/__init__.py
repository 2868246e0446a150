"""Bulk work: a model's answers to all images of a folder, a bucket or a list, as Parquet that can be resumed."""
