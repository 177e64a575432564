"""Low-rank adapters as files: PEFT folders and llama.cpp's GGUF adapters, read and written with numpy alone.

adapter.py says what an adapter is; safetensors.py the container of PEFT's weights; peft.py, gguf.py the two forms; read.py takes
either. Nothing is unpickled, and what a file says is checked against its bytes first.
"""

from gangpao.formats.adapters.adapter import Adapter, Part
from gangpao.formats.adapters.peft import write_peft
from gangpao.formats.adapters.read import read_adapter

__all__ = ["Adapter", "Part", "read_adapter", "write_peft"]
