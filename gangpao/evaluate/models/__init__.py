"""Who answers: our engine, a checkpoint in torch, any OpenAI-compatible server.

protocol.py     Model: groups of choices scored, prompts answered; what they give back
endpoint.py     a server; align.py where its tokens lie in a text, many.py many requests at once, price.py what they cost
"""
