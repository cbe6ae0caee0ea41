"""The tests of the backbones on several versions of diffusers and transformers, and a table.

``make test-versions`` runs it. Every stack gets an environment of its own under a temporary folder,
or under the folder given with ``--folder``, where a second run finds it again.

    python tests/versions.py                     # all stacks
    python tests/versions.py oldest previous     # some of them
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Versions of transformers 4 need the hub's client below 1, which is resolved with them.
STACKS = {
    "oldest": ["diffusers==0.36.*", "transformers==4.45.*"],
    "previous": ["diffusers==0.38.*", "transformers==4.57.*"],
    "newest": ["diffusers", "transformers"],
}
FILES = [
    "test_autoencoders.py",
    "test_backbones.py",
    "test_coordinates.py",
    "test_guide.py",
    "test_guide_laws.py",
    "test_guided_pipelines.py",
    "test_decoding.py",
    "test_any_pipeline.py",
    "test_draw.py",
    "test_pipeline_oracle.py",
    "test_pipeline_table.py",
    "test_replay.py",
    "test_generate.py",
    "test_pipeline_settings.py",
    "test_published.py",
    "test_recorded.py",
    "test_text_conditions.py",
    "test_tiny_pipelines.py",
]
SHOWN = ("torch", "diffusers", "transformers", "huggingface_hub")


def environment(folder: Path, requirements: list[str]) -> Path:
    """The interpreter of an environment with these requirements, made if it is not there."""

    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if not stamp.is_file() or stamp.read_text() != "\n".join(requirements):
        uv = shutil.which("uv") or Path(sys.executable).parent / "uv"
        subprocess.run(
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True
        )
        command = [uv, "pip", "install", "--quiet", "--python", python]
        editable = ["--editable", ".[dev]", "--editable", "testbed"]
        subprocess.run([*command, *editable, *requirements], cwd=ROOT, check=True)
        stamp.write_text("\n".join(requirements))
    return python


def versions(python: Path) -> str:
    code = (
        "from importlib.metadata import version\n"
        f"print(', '.join(name + ' ' + version(name) for name in {SHOWN}))"
    )
    run = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def run(python: Path) -> tuple[bool, str, str]:
    """Whether the tests pass, pytest's last line, and the lines about what failed."""

    files = [path for name in FILES for path in sorted((ROOT / "tests").rglob(name))]
    # Old versions meet deprecations of theirs.
    command = [python, "-m", "pytest", "-W", "default", "--tb=short", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = (ran.stdout + ran.stderr).strip().splitlines()
    failures = [line for line in lines if re.match("FAILED|ERROR|E  ", line)]
    return ran.returncode == 0, lines[-1].strip("= "), "\n".join(failures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stacks", nargs="*", choices=[[], *STACKS], help="default: all")
    parser.add_argument("--folder", type=Path, help="where environments are made and kept")
    arguments = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        for name in arguments.stacks or STACKS:
            python = environment(folder / name, STACKS[name])
            start = time.monotonic()
            passed, summary, failures = run(python)
            seconds = time.monotonic() - start
            verdict = "passed" if passed else "FAILED"
            print(f"{verdict}  {name:9s} {versions(python)}: {summary} ({seconds:.0f} s)")
            if failures:
                print(failures)
            sys.stdout.flush()
            good &= passed
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
