"""Buckets: addresses, such as gs://bucket/run, where paths are expected."""
