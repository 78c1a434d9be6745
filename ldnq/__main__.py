"""`python -m ldnq …`."""

from ldnq.cli import main

main(prog_name="ldnq")
