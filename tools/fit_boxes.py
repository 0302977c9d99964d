"""Fit default boxes to a data set: ``python tools/fit_boxes.py data.root=my_set``."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnvision.errors import UserError
from tools.cli import command, one_task


def fit(cfg: DictConfig) -> list[str]:
    """Report lines; writes a head config where ``cfg.output`` says so."""
    from mnvision.data.box_report import report_boxes
    from mnvision.files import whole_file
    from tools.run import build_data, plain

    config: Any = plain(cfg.head)
    if "box_sizes" not in config:
        raise UserError("only the default boxes of an SSD can be fitted: give task=ssd_coco, or another task of an SSD")
    data = build_data(cfg, "fit")
    report = report_boxes(data.index("train"), config, cfg.backbone.out_strides, cfg.backbone.resolution, cfg.count)
    lines = report.lines()
    if cfg.output is not None:
        if not str(cfg.output).endswith(".yaml"):
            raise UserError(f"output={cfg.output}: give a .yaml file, e.g. conf/head/my_set.yaml")
        base = "ssdlite" if config["lite"] else "ssd"
        with whole_file(cfg.output) as path:
            OmegaConf.save(OmegaConf.create({"defaults": [base], "box_sizes": report.box_sizes}), path)
        lines.append(f"head config: {cfg.output}")
    return lines


@command("fit_boxes", one_task)
def main(cfg: DictConfig) -> None:
    """Command line."""
    for line in fit(cfg):
        print(line)


if __name__ == "__main__":
    main()
