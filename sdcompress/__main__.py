"""``python -m sdcompress``, for where the command is not on the path."""

from sdcompress.cli import main

main(prog_name="sdcompress")
