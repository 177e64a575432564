"""Run a GGUF model on a CPU: reader, weights, forward pass, cache, sampling, generation."""
