"""How good a model is: protocols, scores, metrics."""

SPLITS = ("train", "validation", "test", "all")
"""What of a corpus may be scored; "all" is the three as one text."""
