"""Adapters put into weights: onto a Hugging Face folder or a GGUF file, and measured before the result gets its name.

adapted.py says what becomes of a tensor; folder.py and gguf.py read the base and write the result, tensor by tensor; check.py
compares the result with base and adapter; merge.py is the whole of it, command.py what a person types.
"""
