"""Programs that a model wrote, run where they can do no harm and judged where they cannot reach.

parent.py     start: what may be asked of the cage, its limits, and the processes that hold it
child.py      the cage from within: namespaces, the read-only root, limits; runs as a script, without gangpao
inside.py     two processes in it: one runs the program and knows no tests, one runs the tests and decides
syscalls.py   what the kernel refuses to the program

The program and the tests never share a process. Tests call the program over a pipe, and what comes back is rebuilt as plain
Python values, so an object that is equal to everything, a changed `assert` or a search through frames has nothing to act on.
"""
