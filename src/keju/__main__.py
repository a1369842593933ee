"""python -m keju STAGE: as the command `keju`."""

from keju.cli import main

main()
