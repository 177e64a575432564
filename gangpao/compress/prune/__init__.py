"""A smaller model by leaving parts of it out: layers, FFN channels, heads, width; or by masks of n weights in every m.

shape.py says which smaller shapes are legal, statistics.py what runs through the model on calibration text, scores.py and layers.py
what matters least, solve.py which combination loses least for a number of parameters; reconstruct.py lets what stays take over
from what goes, cut.py cuts. gates/ learns what goes instead (L0 with a target), masks.py and patterns.py do n:m. run.py puts a
step together; start reading there.
"""
