"""What model files are: weight blocks and the GGUF container. Needs no compiled code."""
