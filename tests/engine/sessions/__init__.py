"""Context shift, and caches on the disk."""
