"""`python -m densekit`, which torchrun starts."""

from densekit.cli import main

if __name__ == "__main__":
    main()
