"""Integer weights in Hugging Face folders as others write them: GPTQ, AWQ and compressed-tensors.

`scheme.py` reads what config.json says of them, `layouts.py` takes the packed tensors of a matrix apart, `bits.py` is how numbers
of few bits lie in int32. numpy alone.
"""
