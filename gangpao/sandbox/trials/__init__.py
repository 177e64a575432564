"""One trial is a training run named by what it is; a queue, workers and a live table for many of them."""
