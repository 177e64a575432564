"""What outlives a full context and a process: `shift.py` drops the oldest of a text and lets it go on; `identity.py` says what a
cache was computed with, `file.py` keeps one conversation's cache in a file, `store.py` the prefixes of a server in a folder."""
