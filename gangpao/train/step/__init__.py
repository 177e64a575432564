"""One optimizer step: the loss, the threads or ranks that share its rows, the optimizers."""
