"""The dialects that clients speak: OpenAI, Anthropic, Ollama."""
