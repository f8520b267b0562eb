"""`python -m dermlens` is `dermlens`."""

from dermlens.cli import main

main()
