"""Pictures to train a model that sees on, with what is asked and answered about each: `gangpao data pictures KIND --out DIR`.

scene.py      what all kinds share: a drawn picture, questions with answers, colours, and what only a test shows
shapes.py strings.py charts.py hands.py     drawn by us: picture i of a seed is always the same
archives.py   figures and dishes from tar archives, easy-VQA from its package: pictures of others with their words
table.py      the kinds by name
write.py      pictures and rows.jsonl in a folder, in the form that `gangpao tune` reads
"""
