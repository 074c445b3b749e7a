"""Forecast a chain from its trained teacher: ``python -m distill.preview RUN``."""

import sys

from distill.running.preview import main, page, preview

__all__ = ["main", "page", "preview"]

if __name__ == "__main__":
    sys.exit(main())
