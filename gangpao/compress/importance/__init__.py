"""Which columns of a weight matter: how large their inputs are, on texts in Chinese, English and code.

calibration.py  texts and conversations -> windows of ids, languages in equal parts; texts/ are those that are taken by default
collect.py      windows through our engine -> sums of squared inputs (gangpao/formats/imatrix.py), resumable
show.py         which layers and columns stand out
"""
