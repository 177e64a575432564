"""How surprised a model is by a text, and how far two models are apart on it.

texts.py        files -> documents, and which language they are in
windows.py      a document's ids -> windows, and which of their tokens count
material.py     all windows of what was given, counted and then one by one
scorers.py      who computes: our engine, a checkpoint in torch; windows -> log-probabilities or whole rows of logits
base_logits.py  llama.cpp's file of log-probabilities (--kl-divergence-base), read and written
divergence.py   two models on the same tokens: KL divergence, change of probability, same best token
statistics.py   sums that grow window by window, and the standard errors of their quotients
tally.py        answers -> scores in total, by part and by language
run.py          all of it in order, resumable: `run_perplexity`
command.py      `gangpao eval perplexity`
"""
