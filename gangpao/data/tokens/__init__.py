"""From text to ids: byte pairs, shards, and batches in an order that can be resumed."""
