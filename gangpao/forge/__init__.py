"""The line through all rooms: from a TOML file to a model that answers, each stage a command that a person would type.

config.py    what a line is: the tables of its stages
content.py   what a stage depends on, as hashes of contents
stages/      each stage: its commands, what comes out, what is worth telling
record.py    what a line leaves in its folder
aside.py     a stage put aside and taken back
line.py      one stage after the other, skipped where nothing changed, resumable; **start reading here**
child.py     a command as a process whose words are kept
status.py    a row per stage; quality.py what came of each in a few words; slurm.py the same line as jobs
check.py     is the file served as it answers?
report/      one page of the whole run
"""
