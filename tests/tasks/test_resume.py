"""A killed and resumed run ends with the weights of an undisturbed one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_killed_run_ends_as_an_undisturbed_one() -> None:
    words = ["scripts/kill_resume.py", "--kills", "2", "--epochs", "2"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # beside the other tests
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=one_thread, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bitwise equal: True; left-over files: 0" in done.stdout
