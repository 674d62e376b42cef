"""What importing costs: the package alone, and the pipeline next to torch itself.

Every import is timed inside a fresh interpreter. The pipeline is imported right after torch in the same one, so that
both meet the same load of the machine.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from timing import finish, machine, report

PACKAGE_SECONDS = 0.3
PIPELINE_OVER_TORCH = 1.2
ROUNDS = 7

TIME_IMPORTS = """
import importlib, sys, time
for module in sys.argv[1:]:
    start = time.perf_counter()
    importlib.import_module(module)
    print(time.perf_counter() - start)
    if module == "qwenimage_core":
        assert "torch" not in sys.modules
"""


def import_seconds(*modules: str) -> list[float]:
    """Seconds that each of these imports takes, one after the other in one new interpreter."""
    command = [sys.executable, "-c", TIME_IMPORTS, *modules]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(line) for line in done.stdout.splitlines()]


def main() -> None:
    print(machine())
    import_seconds("torch", "qwenimage_core.pipeline")  # once from a cold disk

    package = statistics.median(import_seconds("qwenimage_core")[0] for _ in range(ROUNDS))
    pairs = [import_seconds("torch", "qwenimage_core.pipeline") for _ in range(ROUNDS)]
    ratio = statistics.median((torch + pipeline) / torch for torch, pipeline in pairs)
    torch_seconds, more = (statistics.median(column) for column in zip(*pairs, strict=True))
    finish(
        report("import qwenimage_core, seconds", package, PACKAGE_SECONDS),
        report(
            "import of the pipeline over import of torch",
            ratio,
            PIPELINE_OVER_TORCH,
            f"torch {torch_seconds:.2f} s, the pipeline {more:.2f} s more",
        ),
    )


if __name__ == "__main__":
    main()
