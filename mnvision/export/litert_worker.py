"""The converter's end of ``mnvision/export/litert.py``: ``python -m mnvision.export.litert_worker request.pt``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from mnvision.build import build_model
from mnvision.export.graph import GraphOptions, build_graph
from mnvision.export.int8_traced import LayerRounding
from mnvision.export.litert import LiteRT, convert


def main(path: str) -> None:
    """Build the graph that a request describes, and write it."""
    request = torch.load(path, weights_only=True)
    graph = build_graph(build_model(request["model"]), GraphOptions(LiteRT.layout, resize=request["resize"]))
    graph.load_state_dict(request["weights"])
    roundings = request["roundings"]
    if roundings is not None:
        roundings = {title: LayerRounding(**entry) for title, entry in roundings.items()}
    convert(graph, request["batch"], roundings, Path(request["target"]))


if __name__ == "__main__":
    main(sys.argv[1])
