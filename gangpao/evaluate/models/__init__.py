"""Who answers: our engine, a checkpoint in torch, any OpenAI-compatible server.

answers.py      what comes back, whoever answers: scores of texts, and texts
endpoint.py     a server, over HTTP; align.py finds where tokens lie in a text, many.py asks for many things at once
"""
