"""`gangpao serve --engine vllm`: vLLM as a process behind our guard."""
