"""Several processes: how they meet, how each knows that the others live, what they decide alike."""
