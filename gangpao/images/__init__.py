"""Pictures: files -> pixels -> slices -> patches, and the marks and places of their rows in a prompt. Needs no compiled code."""
