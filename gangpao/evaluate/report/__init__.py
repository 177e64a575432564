"""Runs side by side, with each other and with what others published.

statistics.py   standard errors, paired and unpaired differences, several tasks at once
published.py    scores of others (published.toml) with their sources
runs.py         a run as it is given: our folder, or a results file of lm-eval
lm_eval.py      lm-eval's own result files, written and read
compare.py      differences between runs, and to published rows
command.py      `gangpao eval report` and `gangpao eval compare`
page/           one page of it all, as HTML and as Markdown
"""
