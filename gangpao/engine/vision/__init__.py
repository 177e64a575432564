"""Sight on the device: an mmproj file -> encoder and merger on our kernels -> rows that stand in the place of token embeddings."""
