"""From raw files to training batches: sources, cleaning, duplicates, contamination, tokenizers, shards, packing."""
