"""`python cli.py …` from a checkout does what the installed `ldnq …` does."""

from ldnq.cli import main

if __name__ == "__main__":
    main()
