"""What knows answers and no wire format: grammars, schemas, calls of functions, images, the way to the scheduler."""
