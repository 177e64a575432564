"""Speculation: tokens that are proposed and checked several at once, which never changes an answer.

drafters.py      what proposes tokens has to be (Drafter)
pool.py          proposals from earlier answers of the same client, within bounds
draft_model.py   proposals by a small model of the same vocabulary
chances.py       how often proposals of each kind were right
speculation.py   proposals from the answer's own text; what rows cost on this machine; what the answers of an engine share; the gate
                 (who proposes how many for the next step); the check
"""
