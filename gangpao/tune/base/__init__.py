"""The frozen base of a tuning: from a Hugging Face folder or a GGUF file whose blocks stay as they are."""
