"""Pictures in prompts: their rows as ids behind the vocabulary, what an engine sees with, and messages that have pictures."""
