"""Finished models in other runtimes' formats: the function behind `craft export`."""
