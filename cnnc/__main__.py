"""`python -m cnnc`: the command line."""

from cnnc.cli import main

if __name__ == "__main__":
    main()
