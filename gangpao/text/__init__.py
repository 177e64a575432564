"""Text in and out of a model: tokenizers and the chat template."""
