"""Checkpoints that appear whole and are verified, written by one rank or by all."""
