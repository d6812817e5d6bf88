"""`python -m demask`: what launchers of several processes call."""

from demask.cli import main

if __name__ == "__main__":
    main()
