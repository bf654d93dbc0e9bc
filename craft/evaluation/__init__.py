"""How good a model is: protocols, scores, metrics."""
