"""`python -m serving BUNDLE`."""

from serving.server import main

main()
