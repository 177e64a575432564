"""What tuning has to know of pictures and of models that see; knows nothing of bases, methods and runs.

config.py    [vision] of a run: which parts learn, how fast; [new]: a model that sees, put together; [[pictures]]
table.py     the pictures of a run: each row of the language model that comes from one has an id behind the vocabulary
render.py    a conversation with pictures as ids
load.py      a folder that sees
features.py  what a frozen encoder says, computed once and kept on the disk
memory.py    what a tower takes
"""
