"""The proof as a table, as plain data and as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnvision.files import whole_file
from mnvision.latency.report import markdown
from mnvision.proof.verdict import FileProof


@dataclass
class Proof:
    """A checkpoint and its files.

    Attributes:
        checkpoint: Its name in the table.
        kind: Of model.
        data: Where the pictures come from: ``root``, ``split``, ``pictures`` and ``of`` (how many the split has).
        metric: The official metric; None without labels.
        score: The checkpoint's.
        size_mb: Of the checkpoint, with what training keeps in it.
        files: One entry each.
        median_ms: Of the checkpoint in torch; None where not timed.
        cpu_ms: Likewise.
        machine: It was measured on.
        notes: What a reader should know.
        head: Whose answers they are; empty for a single-task model.
    """

    checkpoint: str
    kind: str
    data: dict[str, Any]
    metric: str | None
    score: float | None
    size_mb: float
    files: Sequence[FileProof]
    median_ms: float | None
    cpu_ms: float | None
    machine: dict[str, Any]
    notes: list[str]
    head: str = ""

    @property
    def passed(self) -> bool:
        """Whether all files do."""
        return not any(file.failures for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        own = {
            "name": self.checkpoint,
            "score": self.score,
            "size_mb": self.size_mb,
            "median_ms": self.median_ms,
            "cpu_ms": self.cpu_ms,
        }
        return {
            "passed": self.passed,
            "kind": self.kind,
            "data": self.data,
            "metric": self.metric,
            "checkpoint": own,
            "files": [file.to_dict() for file in self.files],
            "machine": self.machine,
            "notes": self.notes,
        }


def table(proof: Proof) -> list[list[str]]:
    """A heading, a line for the checkpoint and one per file."""
    timed = proof.median_ms is not None
    heading = ["file", "precision", "MB", "largest diff", "mean diff", "flipped"]
    heading += [proof.metric, "change", "95 % interval"] if proof.metric else []
    heading += ["ms", "x torch", "CPU ms", "x torch"] if timed else []
    own = [proof.checkpoint, "torch", f"{proof.size_mb:.2f}", "-", "-", "-"]
    own += [_number(proof.score, "{:.4f}"), "-", "-"] if proof.metric else []
    own += [_number(proof.median_ms, "{:.2f}"), "1.00", _number(proof.cpu_ms, "{:.2f}"), "1.00"] if timed else []
    lines = [[*heading, "verdict"], [*own, "-"]]
    for file in proof.files:
        found = file.differences
        cells = [file.name, file.precision or "-", f"{file.size_mb:.2f}"]
        if found is None:
            cells += ["-", "-", "-"]
        else:
            share = f"{found.flipped} of {found.decisions}" if found.decisions else "-"
            cells += [f"{found.largest:.1e}", f"{found.mean:.1e}", share]
        if proof.metric:
            cells += [_number(file.score, "{:.4f}"), _number(file.change, "{:+.4f}"), str(file.interval or "none")]
        if timed:
            cells += [_number(v, "{:.2f}") for v in (file.median_ms, file.ratio, file.cpu_ms, file.cpu_ratio)]
        lines.append([*cells, "FAILS" if file.failures else "passes"])
    return lines


def remarks(proof: Proof) -> list[str]:
    """What flipped, why a file fails, and notes."""
    lines = []
    for file in proof.files:
        found = file.differences
        lines += [f"{file.name} fails: {reason}" for reason in file.failures]
        if found is None:
            continue
        if found.kinds:
            lines.append(f"{file.name}: {', '.join(f'{count} {name}' for name, count in found.kinds.items())}")
        if found.cosine is not None:
            lines.append(f"{file.name}: lowest cosine of both embeddings of a picture {found.cosine:.7f}")
        if found.largest_pixels is not None:
            lines.append(f"{file.name}: matched boxes differ by at most {found.largest_pixels:.2g} px")
    return [*lines, *(f"note: {note}" for note in proof.notes)]


def write(proofs: Sequence[Proof], folder: Path) -> None:
    """Write ``prove.json`` and ``prove.md``: of one proof, or of one for each head.

    Raises:
        UserError: The folder cannot be written to.
    """
    content: dict[str, Any] = proofs[0].to_dict()
    if proofs[0].head:
        passed = all(proof.passed for proof in proofs)
        content = {"passed": passed, "heads": {proof.head: proof.to_dict() for proof in proofs}}
    with whole_file(folder / "prove.json") as path:
        path.write_text(json.dumps(content, indent=2) + "\n")
    with whole_file(folder / "prove.md") as path:
        path.write_text("\n".join(page(proof) for proof in proofs))


def page(proof: Proof) -> str:
    """The proof as Markdown."""
    data, machine = proof.data, proof.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    of = f"{proof.checkpoint}, head {proof.head}" if proof.head else proof.checkpoint
    parts = [
        f"# {of}: {'every file passes' if proof.passed else 'NOT every file passes'}",
        f"{data['pictures']} of {data['of']} pictures of split {data['split']} of {data['root']}; {proof.kind}.",
        markdown(table(proof)).strip(),
        "\n".join(f"- {line}" for line in remarks(proof)),
        "\n\n".join(f"![{file.name}]({file.figure})" for file in proof.files if file.figure),
        f"Machine: {machine['processor']}, {machine['cores']} cores; {packages}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
