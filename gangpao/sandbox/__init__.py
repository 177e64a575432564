"""Model Sandbox: many small training runs, the laws fitted to them, and the recipe they give for a large one.

trials/ is one small run and the queue of many; laws/ the statistics; experiments/ a table of questions, each with its
trials and its answer; plan/ what a large run should be, and what came of it. command.py is the command line.
"""
