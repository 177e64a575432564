"""Messages -> prompt: chat templates recognised as formats of ours, or run in a process that can be killed."""
