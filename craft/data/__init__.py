"""Text in, ids out: sources, tokenizers, cached id arrays, and the order in which windows are drawn."""
