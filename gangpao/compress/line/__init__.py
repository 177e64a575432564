"""The line: a model to a smaller one by steps that follow one another, and the file with everything that helps it.

file.py      one file: a mixture or a budget, importance, rounding with the data in view; folders for servers
config.py    `[[step]]` tables of a TOML as one record
run.py       the steps, each resumable; report.py what became of them, measured

"""
