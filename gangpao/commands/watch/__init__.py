"""`gangpao watch`: frames -> what changed -> a sentence each from a model that sees -> a log that answers questions.

watch.py the command, live.py frames as they come and the newest of them, describe.py requests to the server, log.py the log file.
"""
