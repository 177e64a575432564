"""Models with smaller weights: the types of GGUF files, and which tensor gets which.

mixtures.py  the named mixtures of llama-quantize: a name and a model's shapes -> the type of every tensor
source.py    what is quantized: a .gguf file, its parts; folder.py a Hugging Face folder; tensors.py what both are
write.py     source, types and an encoder -> a .gguf file, in the memory of a few rows
report.py    what became of it, as a table and as JSON
config.py    what is chosen; run.py a file in one call, and the importance matrix it is rounded with
"""
