"""``python -m tunebook``."""

from tunebook.cli import main

main()
