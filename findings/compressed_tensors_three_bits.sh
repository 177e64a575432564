#!/bin/sh
# compressed-tensors 0.16.0 and 0.20.1 (torch 2.13.0, transformers 5.23.0): weights of 3 bits that one version packed, the other takes
# apart as other weights.
#
# Expected: a folder of the same format ("pack-quantized", 3 bits) means the same weights in both, or is refused.
# Seen: 0.16.0 puts ten numbers of three bits into a word of 32 and leaves two bits unused; since 0.18.0 numbers run on over the ends of
# words. Nothing in the tensors or in quantization_config says which, and the newer version takes the older one's tensors apart without a
# word: about seven weights of eight are wrong. 2, 4 and 8 bits are packed alike in both.
#
# What gangpao does about it: it counts the words of a row, which differ between the two forms in every row of 160 weights and more, and
# reads both (gangpao/formats/integers/layouts.py).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/python -m pip --disable-pip-version-check -q install"
$pip torch==2.13.0 transformers==5.23.0 compressed-tensors==0.16.0 psutil==7.2.2  # which 0.16.0 imports and does not ask for
cat > "$folder/three_bits.py" <<'PYTHON'
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

path, bits, write = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "write"
compressor = BaseCompressor.get_value_from_registry("pack-quantized")
scheme = QuantizationScheme(
    targets=["Linear"], weights=QuantizationArgs(num_bits=bits, symmetric=True, strategy="group", group_size=64)
)
scheme.format = "pack-quantized"
q = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (8, 256), generator=torch.Generator().manual_seed(0))
weight, scale = q.float() * 0.5, torch.full((8, 4), 0.5)
if write:
    packed = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    torch.save({name: value for name, value in packed.items() if isinstance(value, torch.Tensor)}, path)
    sys.exit()
found = compressor.decompress(torch.load(path, weights_only=True), scheme)["weight"]
print(f"{(found == weight).float().mean():.3f}")
PYTHON
for bits in 3 4; do "$folder/venv/bin/python" -W ignore "$folder/three_bits.py" "$folder/$bits.pt" $bits write; done
same=$("$folder/venv/bin/python" -W ignore "$folder/three_bits.py" "$folder/3.pt" 3 read)
$pip --no-deps compressed-tensors==0.20.1
three=$("$folder/venv/bin/python" -W ignore "$folder/three_bits.py" "$folder/3.pt" 3 read)
four=$("$folder/venv/bin/python" -W ignore "$folder/three_bits.py" "$folder/4.pt" 4 read)
echo "share of weights read back: 3 bits by the version that wrote them $same, by 0.20.1 $three; 4 bits by 0.20.1 $four"
[ "$same" = 1.000 ] && [ "$four" = 1.000 ] && [ "${three%%.*}" = 0 ]
