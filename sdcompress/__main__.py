"""``python -m sdcompress``, for where the command is not on the path."""

from sdcompress.cli import main

if __name__ == "__main__":
    main(prog_name="sdcompress")
