"""Finished models in other runtimes' formats and as a page: the functions behind `craft export`."""
