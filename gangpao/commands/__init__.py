"""What a person types on the device: `gangpao VERB` is VERB.py here.

model/ says which file a name means and loads it; terminal/ is what a conversation looks like; options.py has the
options that several verbs share.
"""
