"""`accelerate launch -m qwenimage_training ...` is `qwenimage train ...` in every process."""

from __future__ import annotations

import sys

from qwenimage_core.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
