"""What a smaller model lost, beside the one it was made from: `gangpao compare A B [C ...]`, the first is the reference.

`texts.py` and `prompts.py` what is asked where nothing is given -> `quality.py` perplexity and divergence by language ->
`answers.py` whether answers end -> `run.py` all models one after the other, resumable; start reading there -> `judged.py`
what is worth a warning -> `page.py`, `words.py`, `pictures.py` the tables and the page. Every measurement is that of
`gangpao eval` and `gangpao bench`.
"""
