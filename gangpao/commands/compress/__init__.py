"""Commands of the room compress/ that need what only commands may use: models found by name or pulled, and the speed of `bench`."""
