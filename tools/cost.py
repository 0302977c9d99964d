"""Count multiply-adds and parameters: ``python tools/cost.py task=ssd_coco backbone.alpha=0.75``."""

from __future__ import annotations

import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnvision.errors import UserError
from tools.cli import command


def build_settled(cfg: DictConfig) -> Any:
    """The model that ``cfg`` describes, its class count from the config alone: no data are read."""
    from mnvision.build import build_model
    from mnvision.checkpoints import load_model
    from tasks.composition import settle

    if cfg.checkpoint:
        return load_model(cfg.checkpoint)[0]
    config: Any = OmegaConf.to_container(cfg.model, resolve=True)
    if "num_classes" in config["head"] and config["head"]["num_classes"] is None:
        config["head"]["num_classes"] = cfg.classes_without_data
    return build_model(settle(config, None, None))


@command("cost")
def main(cfg: DictConfig) -> None:
    """Command line."""
    from mnvision.cost import measure
    from mnvision.files import whole_file

    if cfg.by not in ("type", "layer", "part"):
        raise UserError(f"by={cfg.by}: choose type, layer or part")
    model = build_settled(cfg)
    cost = measure(model, model.backbone.resolution)
    formats = {
        "table": lambda: cost.table(by=cfg.by),
        "csv": cost.to_csv,
        "json": lambda: json.dumps(cost.to_dict(), indent=2),
    }
    if cfg.format not in formats:
        raise UserError(f"format={cfg.format}: choose {', '.join(formats)}")
    text = formats[cfg.format]()
    if cfg.output is None:
        print(text)
        return
    with whole_file(cfg.output) as path:
        path.write_text(text)
    print(f"cost: {cfg.output}")


if __name__ == "__main__":
    main()
