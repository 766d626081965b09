"""``python -m converter`` is ``flax-convert``."""

from converter.cli import main

if __name__ == "__main__":
    main()
