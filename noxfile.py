"""The project's chores, one session each: `nox -l` lists them, plain `nox` runs what CI runs.

Every environment is built by pip (uv does not see the index settings that give a small torch) from constraints.txt, and
holds the distributions installed as a user would have them, not editable.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox
import nox.command

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "venv"
nox.options.error_on_external_run = True
# The documented examples are part of the default test run, so that `docs` is not among these.
nox.options.sessions = ["lint", "tests"]

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "constraints.txt"
PACKAGING = ROOT / "tests" / "packaging"
TEST_TOOLS = ("pytest", "pytest-xdist", "hypothesis")
LINT_TOOLS = ("ruff", "mypy")
PEERS = {"torch": "2.14.1", "torchvision": "0.29.1", "diffusers": "0.42.1", "diffsynth": "2.1.12"}
# One thread a process: two test processes share the cores of the smallest machine without fighting for them.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def distributions() -> list[Path]:
    """The core first, then every package of contrib/ and plugins/ that exists."""
    others = [
        *ROOT.glob("contrib/qwenimage-*/pyproject.toml"),
        *ROOT.glob("plugins/qwenimage-*/pyproject.toml"),
    ]
    return [ROOT, *sorted(path.parent for path in others)]


def packages() -> list[str]:
    """The import packages of all distributions, as paths for the type checker."""
    found = [
        ROOT / "qwenimage_core",
        *(path for d in distributions()[1:] for path in sorted(d.glob("qwenimage_*"))),
    ]
    return [str(path.relative_to(ROOT)) for path in found if path.is_dir()]


def install(session: nox.Session, *tools: str, constraints: Path = CONSTRAINTS) -> None:
    """Install all distributions and the given tools with one pip call, so that one resolution covers them."""
    folders = (str(path) for path in distributions())
    # Most of what is installed is never imported: compiling on first import is quicker than compiling all of it.
    session.install("--no-compile", "-c", str(constraints), *folders, *tools)


def install_peers(session: nox.Session) -> None:
    """Install the peers beside our distributions; they need a torch that has a torchvision, so its pin gives way."""
    kept = [line for line in CONSTRAINTS.read_text().splitlines() if line.partition("==")[0] not in PEERS]
    constraints = Path(session.create_tmp()).resolve() / "constraints-peers.txt"
    constraints.write_text(
        "\n".join([*kept, *(f"{name}=={version}" for name, version in PEERS.items())]) + "\n"
    )
    install(session, *PEERS, *TEST_TOOLS, constraints=constraints)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting and types."""
    install(session, *LINT_TOOLS, "nox")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy", *packages(), "noxfile.py")


@nox.session
def tests(session: nox.Session) -> None:
    """The default test set, on the installed distributions: `nox -s tests -- -k name` for a part of it."""
    install(session, *TEST_TOOLS, "nox")
    session.run("pytest", "-n", "2", "--dist", "loadfile", *session.posargs, env=ONE_THREAD)


@nox.session
def engines(session: nox.Session) -> None:
    """Training shared out by DeepSpeed, by two processes on the CPU. pip builds DeepSpeed, so that takes a while."""
    install(session, *TEST_TOOLS)
    # not isolated: its build imports the torch that it is for, and none of its own parts is compiled here
    session.install("setuptools", "wheel", "ninja")
    built = {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}
    session.install("--no-build-isolation", "-c", str(CONSTRAINTS), "deepspeed>=0.19,<0.20", env=built)
    tests = "contrib/qwenimage-training/tests/core_side/test_engines.py"
    session.run("pytest", tests, *session.posargs, env=ONE_THREAD)


@nox.session
def trackers(session: nox.Session) -> None:
    """What training logs to TensorBoard, wandb and trackio, read back from where they keep it. Nothing is sent."""
    install(session, *TEST_TOOLS)
    training = ROOT / "contrib" / "qwenimage-training"
    # without the constraints: trackio wants an older pillow than the one that is pinned
    session.install(f"{training}[tensorboard,wandb,trackio]")
    tests = training / "tests" / "core_side" / "test_trackers.py"
    session.run("pytest", str(tests), *session.posargs, env=ONE_THREAD)


@nox.session
def docs(session: nox.Session) -> None:
    """Run every example of the README files and of docs/."""
    install(session, *TEST_TOOLS)
    session.run("pytest", "tests/docs", *session.posargs, env=ONE_THREAD)


@nox.session
def parity(session: nox.Session) -> None:
    """Compare with diffusers and DiffSynth-Studio, run live on equal weights. Installs several gigabytes."""
    install_peers(session)
    session.run("pytest", "tests/parity", *session.posargs, env=ONE_THREAD)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure ourselves and the peers in one run and print the ratios: `nox -s benchmarks -- bench_vae` for one."""
    install_peers(session)
    chosen = session.posargs or sorted(path.stem for path in ROOT.glob("tests/benchmarks/bench_*.py"))
    missed = []
    for name in chosen:
        try:
            session.run("python", f"tests/benchmarks/{name}.py", env=ONE_THREAD)
        except nox.command.CommandFailed:
            missed.append(name)  # the others are still measured
    if missed:
        session.error(f"a target was missed, or it failed: {', '.join(missed)}")


@nox.session
def build(session: nox.Session) -> None:
    """Build wheel and sdist of every distribution, check what is in them, draw a picture from the wheels in an empty
    environment, then try each plugin's wheel alone there."""
    session.install("-c", str(CONSTRAINTS), "build", "hatchling")
    dist = ROOT / "dist"
    for old in [*dist.glob("qwenimage*.whl"), *dist.glob("qwenimage*.tar.gz")]:
        old.unlink()
    for path in distributions():
        session.run("python", "-m", "build", "--outdir", str(dist), str(path))
    session.run("python", str(PACKAGING / "archives.py"), str(dist))
    python = draw_from_wheels(session, dist)
    with session.chdir(session.create_tmp()):
        check = str(PACKAGING / "plugin_by_plugin.py")
        session.run(python, check, python, str(dist), external=True)  # uninstalls what was drawn with


def draw_from_wheels(session: nox.Session, dist: Path) -> str:
    """Install our wheels from `dist`, then `qwenimage-core[all]` with what that needs, and generate a picture.
    Gives the path of the environment's python.

    In two steps, so that our packages come from these files: pip would prefer a newer namesake on an index.
    """
    scratch = Path(session.create_tmp()).resolve()  # its folder changes below
    wheels = sorted(str(path) for path in dist.glob("qwenimage*.whl"))
    names = [Path(wheel).name.split("-")[0] for wheel in wheels]
    session.run("python", "-m", "venv", "--clear", str(scratch / "empty"))
    bin_folder = scratch / "empty" / ("Scripts" if os.name == "nt" else "bin")
    pip = (str(bin_folder / "python"), "-m", "pip")
    session.run(*pip, "install", "--no-index", "--no-deps", *wheels, external=True)
    session.run(*pip, "install", "-c", str(CONSTRAINTS), "qwenimage-core[all]", *names, external=True)
    session.run(*pip, "check", external=True)
    picture = scratch / "circle.png"
    picture.unlink(missing_ok=True)
    prompt = "a red circle on a blue background"
    # From the scratch folder, so that nothing is imported from the checkout.
    with session.chdir(scratch):
        session.run(str(bin_folder / "qwenimage"), "generate", prompt, "-o", str(picture), external=True)
    if not picture.is_file():
        session.error(f"no picture at {picture}")
    session.log(f"drew {picture}")
    return str(bin_folder / "python")
