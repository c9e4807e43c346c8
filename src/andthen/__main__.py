"""`python -m andthen` is the command `andthen`."""

from andthen.cli import main

main()
