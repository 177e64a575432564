"""Who answers: a GGUF file in our engine, a checkpoint in torch, any OpenAI-compatible server. All of them are a Model.

protocol.py     Model: groups of choices scored, prompts answered; what they give back
tokens.py       text to ids for models that we run ourselves, by lm-eval's rules, and what they leave out
answer.py       a prompt as ids, an answer as it is written, for those models
gguf.py         our engine
checkpoint.py   a folder of weights in torch
endpoint.py     a server; align.py where its tokens lie in a text, many.py requests at once, price.py what they cost
load.py         which of them an argument means
harness.py      a Model as lm-eval sees it, with the journal in between
"""
