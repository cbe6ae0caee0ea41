"""The tests as other machines would run them, and a table: threads, processors, alignments.

``make test-settings`` runs it. What is written after ``--`` goes to pytest.

    python tests/settings.py                            # all settings
    python tests/settings.py threads avx2               # some of them
    python tests/settings.py plain -- tests/rwguidance  # some tests
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Beside ATen, oneDNN and MKL pick their kernels by the processor.
SETTINGS = {
    "plain": {},
    "threads": {"RWGUIDANCE_TEST_THREADS": "2", "OMP_NUM_THREADS": "2"},
    "baseline": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "misaligned": {"RWGUIDANCE_TEST_MISALIGNED": "1"},
}
COUNTED = ("passed", "failed", "error")


def run(setting: str, arguments: list[str]) -> tuple[bool, dict[str, int], list[str]]:
    """Whether the tests pass, how many did what, and the lines about what failed."""

    environment = os.environ | {"OMP_NUM_THREADS": "1"} | SETTINGS[setting]
    command = [sys.executable, "-m", "pytest", "--tb=short", "-p", "no:cacheprovider", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    lines = ran.stdout.strip().splitlines() or [""]
    # Such as "3 failed, 2514 passed, 58 deselected, 1 error in 360.12s".
    found = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", lines[-1])}
    counts = {word: found.get(word, 0) for word in COUNTED}
    failures = [line for line in lines if re.match("FAILED|ERROR", line)]
    if ran.returncode and not failures:
        failures = [*lines[-5:], *ran.stderr.splitlines()[-5:]]
    return ran.returncode == 0, counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", choices=[[], *SETTINGS], help="default: all")
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:cut])
    good = True
    print(f"{'setting':12s}" + "".join(f"{name:>8s}" for name in (*COUNTED, "seconds")))
    for setting in arguments.settings or SETTINGS:
        start = time.monotonic()
        passed, counts, failures = run(setting, given[cut + 1 :])
        seconds = time.monotonic() - start
        print(f"{setting:12s}" + "".join(f"{n:8d}" for n in (*counts.values(), round(seconds))))
        for line in failures:
            print(f"  {line}")
        sys.stdout.flush()
        good &= passed
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
