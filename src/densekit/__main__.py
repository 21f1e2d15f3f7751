"""`python -m densekit`, which torchrun starts."""

from densekit.cli.main import main

if __name__ == "__main__":
    main()
