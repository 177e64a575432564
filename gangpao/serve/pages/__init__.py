"""The chat page, the page that runs the model in a phone, their files and the libraries of others they use."""
