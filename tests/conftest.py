"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from absl import logging as absl_logging

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Before torch is imported: small tensors in several test processes are slower on two threads each than on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# absl comes with TensorBoard and LiteRT, and closes the stream that it found at its import when Hydra sets logging up
# anew. That stream would be pytest's own, and every later test would fail.
absl_logging.get_absl_handler().python_handler.setStream(sys.__stderr__)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small real data beside the project; tests that need it skip visibly where it is absent."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"real sample data not found at {path}")
    return path
