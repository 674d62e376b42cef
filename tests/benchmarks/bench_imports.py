"""What importing costs: the package alone, and the pipeline next to torch itself.

Every import is timed in a fresh interpreter, and the start of an interpreter is taken off both sides.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from timing import compare, finish, machine, report, seconds

PACKAGE_SECONDS = 0.3
PIPELINE_OVER_TORCH = 1.2
ROUNDS = 7


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    print(machine())
    for code in ("import qwenimage_core", "import torch", "import qwenimage_core.pipeline"):
        python(code)  # once from a cold disk

    start = statistics.median(seconds(lambda: python("pass")) for _ in range(ROUNDS))
    package = (
        statistics.median(seconds(lambda: python("import qwenimage_core")) for _ in range(ROUNDS)) - start
    )
    python("import sys, qwenimage_core; assert 'torch' not in sys.modules")

    both = compare(
        lambda: python("import torch; from qwenimage_core import QwenImagePipeline"),
        lambda: python("import torch"),
        rounds=ROUNDS,
    )
    ratio = (both.ours - start) / (both.theirs - start)
    finish(
        report("import qwenimage_core, seconds", package, PACKAGE_SECONDS),
        report(
            "import of the pipeline over import of torch",
            ratio,
            PIPELINE_OVER_TORCH,
            f"{both.ours - start:.2f} s over {both.theirs - start:.2f} s",
        ),
    )


if __name__ == "__main__":
    main()
