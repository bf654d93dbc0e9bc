"""The `craft` command, also as `python -m craft`."""

from craft.cli.main import main

if __name__ == "__main__":
    main()
