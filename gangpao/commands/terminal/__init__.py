"""A conversation in a terminal: what it remembers, with our engine or a server elsewhere, and how it is shown."""
