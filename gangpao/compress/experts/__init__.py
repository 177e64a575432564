"""MoEfication: the MLP of every layer of a dense model is cut into experts, of which a router chooses a few for each token.

`config.py` what is asked for -> `run.py` through the layers -> `layer.py` one MLP into experts (the mathematics is there):
`cluster.py` which channels go together, `router.py` who chooses. The model that comes out is one that llama.cpp and our engine run
(formats/architectures.py: MiniCPM-MoE's form, Mixtral's). arXiv:2110.01786 did this for ReLU; here nothing is zero by itself.
"""
