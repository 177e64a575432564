"""From files, generators and public packages to rows of text or messages."""
