"""Imports run one way, and the expensive libraries stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "mnvision": {"tasks", "tools", "hydra", "omegaconf"},
    "tasks": {"tools", "hydra", "omegaconf"},
    "tools": {"tests"},
}
LIGHTNING_FREE = (
    "backbones",
    "boxes",
    "export",
    "geo",
    "heads",
    "losses",
    "metrics",
    "prediction",
    "proof",
    "teachers",
    "transforms",
)


def imported_roots(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def offenders(folder: Path, forbidden: set[str]) -> dict[str, set[str]]:
    files = sorted(folder.rglob("*.py"))
    assert files
    return {str(f.relative_to(ROOT)): hit for f in files if (hit := imported_roots(f) & forbidden)}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package: str):
    assert not offenders(ROOT / package, FORBIDDEN[package])


@pytest.mark.parametrize("part", LIGHTNING_FREE)
def test_models_losses_and_metrics_know_no_lightning(part: str):
    assert not offenders(ROOT / "mnvision" / part, {"pytorch_lightning", "lightning"})


def test_albumentations_is_imported_under_transforms_only():
    found = offenders(ROOT / "mnvision", {"albumentations"})
    assert found
    assert all(name.startswith("mnvision/transforms/") for name in found)


def test_no_file_of_the_library_grows_past_three_hundred_lines():
    files = [f for name in ("mnvision", "tasks", "tools") for f in (ROOT / name).rglob("*.py")]
    assert len(files) > 50
    assert not {str(f.relative_to(ROOT)) for f in files if len(f.read_text().splitlines()) > 300}
