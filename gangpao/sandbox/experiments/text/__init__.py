"""What experiments found, in words: a module each, from the facts of an outcome to a page in both languages."""
