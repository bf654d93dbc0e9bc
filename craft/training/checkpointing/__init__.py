"""Checkpoints: what they hold, how they are written, found and loaded, what a resume may change."""
