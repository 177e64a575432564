"""Names of mmproj files, as llama.cpp and people on Hugging Face have them: mmproj-MODEL.gguf, mmproj-model-f16.gguf,
MODEL.mmproj-Q8_0.gguf.

    is_mmproj(file)       whether a name is that of an encoder of pictures
    key(stem)             a model's name without its weights' type and without signs: the same for the two files of one model
    key_of_mmproj(file)   the key of the model that an encoder's name names
    rank(file)            which of several types of one encoder is taken: the lowest
"""

import re

_TYPES = ("f16", "bf16", "q8_0", "f32")  # the first is taken of several: what the encoder loses by it is nothing
_TYPE = re.compile(r"(?i)[-_.]?\b(?:i?q\d[a-z0-9_]*|ud|fp16|b?f16|f32)\b")


def is_mmproj(file: str) -> bool:
    """Whether a file is called as encoders of pictures are."""
    name = file.rpartition("/")[2].lower()
    return name.endswith(".gguf") and "mmproj" in name


def key(stem: str) -> str:
    """A model's name without its weights' type and without signs."""
    return re.sub(r"[^a-z0-9]+", "", _TYPE.sub("", stem).lower())


def key_of_mmproj(file: str) -> str:
    """The key of the model that an encoder is named after."""
    return key(re.sub(r"(?i)mmproj", "", file.rpartition("/")[2].rpartition(".")[0]))


def rank(file: str) -> tuple[int, str]:
    """Order of the types of one encoder, the one to take first."""
    name = file.rpartition("/")[2].lower().replace("fp16", "f16")
    return next((i for i, kind in enumerate(_TYPES) if re.search(rf"(?<![a-z]){kind}", name)), len(_TYPES)), file
