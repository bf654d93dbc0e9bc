"""The suites run in upstream's test tree, where run.py lays them, not among the project's own tests."""

collect_ignore = ["suites"]
