"""Process-wide settings: made once, in time, and never over the user's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(code: str, **env: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_tools_settings_come_before_torch():
    assert python("import sys, tools.cli; print('torch' in sys.modules)") == "False"


def test_waiting_threads_spin_briefly_unless_the_user_said_otherwise():
    code = "import os; from mnvision.runtime import tune_threads as t; print(t(), os.environ.get('GOMP_SPINCOUNT'))"
    assert python(code) == "True 2000"
    assert python(code, OMP_WAIT_POLICY="ACTIVE") == "False None"
    assert python(code, GOMP_SPINCOUNT="infinite") == "False infinite"


def test_thresholds_of_the_user_stay():
    code = "from mnvision.runtime import tune_allocator as t; print(t())"
    assert python(code, MALLOC_TRIM_THRESHOLD_="1000000") == "False"
    assert python(code) == str(sys.platform.startswith("linux"))
