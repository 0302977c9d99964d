"""Count multiply-adds and parameters: ``python tools/cost.py task=ssd_coco backbone.alpha=0.75``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from mnvision.errors import UserError
from tools.cli import command
from tools.heads import compose_head, fold, words_by_head
from tools.predict import heads_of

if TYPE_CHECKING:
    from mnvision.cost import Cost
    from mnvision.cost_multitask import JointCost

FORMATS = ("table", "csv", "json")


def build_settled(cfg: DictConfig) -> Any:
    """The model that ``cfg`` describes, its class count from the config alone: no data are read."""
    from mnvision.build import build_model
    from mnvision.checkpoints import load_model
    from mnvision.export.heads import chosen_heads
    from mnvision.merging import MODEL

    if cfg.checkpoint:
        model, metadata = load_model(cfg.checkpoint)
        return model if cfg.heads is None else chosen_heads(model, metadata, heads_of(cfg.heads))[0]
    if "multitask" not in cfg:
        return build_model(settled_config(cfg))
    heads = {}
    for name, words in words_by_head(cfg).items():
        try:
            heads[name] = settled_config(compose_head(name, words, cfg))
        except UserError as error:
            raise UserError(f"head {name}: {error} (as {name}.KEY=VALUE)") from None
    return build_model({"_target_": MODEL, "heads": heads, "norms": cfg.multitask.norms})


def settled_config(cfg: DictConfig) -> dict[str, Any]:
    """The plain config of a single-task model, complete without data."""
    from tasks.composition import settle

    config: Any = OmegaConf.to_container(cfg.model, resolve=True)
    if "num_classes" in config["head"] and config["head"]["num_classes"] is None:
        config["head"]["num_classes"] = cfg.classes_without_data
    return settle(config, None, None)


def count(model: Any, cfg: DictConfig) -> str:
    """The cost of a single-task model as text."""
    from mnvision.cost import measure

    if cfg.by == "head":
        raise UserError("by=head: this model has one head; by=part tells it from the backbone")
    if cfg.time:
        raise UserError("time=true: this model has one head; tools/benchmark.py times it")
    return as_text([("", measure(model, model.backbone.resolution))], cfg)


def count_joint(model: Any, cfg: DictConfig) -> str:
    """The cost of a model of several heads as text: by head, or by layer of each pass."""
    from mnvision.cost_multitask import joint_cost, layers_by_pass
    from mnvision.latency.contest import progress_line
    from mnvision.latency.joint import time_parts
    from mnvision.latency.subjects import settle_statistics

    if cfg.by not in (None, "head"):
        if cfg.time:
            raise UserError(f"time=true: trunk and heads are timed, not by {cfg.by}: leave by=... out")
        return as_text(layers_by_pass(model), cfg)
    cost = joint_cost(model)
    if cfg.time:
        if not cfg.checkpoint:
            settle_statistics(model)
        with progress_line() as report:
            cost = cost.timed(time_parts(model, cfg.seconds, cfg.threads, report))
    return _formatted(cost, cfg)


def as_text(costs: list[tuple[str, Cost]], cfg: DictConfig) -> str:
    """Costs with a title each."""
    if cfg.format == "table":
        tables = [(title, cost.table(by=cfg.by or "type")) for title, cost in costs]
        return "\n\n".join(f"{title}\n{table}" if title else table for title, table in tables)
    if cfg.format == "csv":
        return "\n".join(cost.to_csv() for _, cost in costs)
    plain = {title: cost.to_dict() for title, cost in costs}
    return json.dumps(plain.get("", plain), indent=2)


def _formatted(cost: JointCost, cfg: DictConfig) -> str:
    if cfg.format == "json":
        return json.dumps(cost.to_dict(), indent=2)
    return cost.to_csv() if cfg.format == "csv" else cost.table()


def _check(cfg: DictConfig) -> None:
    if cfg.by not in (None, "type", "layer", "part", "head"):
        raise UserError(f"by={cfg.by}: choose type, layer or part, or head for a model of several heads")
    if cfg.format not in FORMATS:
        raise UserError(f"format={cfg.format}: choose {', '.join(FORMATS)}")
    if cfg.heads is not None and not cfg.checkpoint and "multitask" not in cfg:
        raise UserError(f"heads={cfg.heads}: give checkpoint=FILE with several heads, or task=multitask")
    if not isinstance(cfg.time, bool):
        raise UserError(f"time={cfg.time}: give true or false")


@command("cost", fold)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from mnvision.files import whole_file

    _check(cfg)
    model = build_settled(cfg)
    text = count_joint(model, cfg) if model.kind == "multitask" else count(model, cfg)
    if cfg.output is None:
        print(text)
        return
    with whole_file(cfg.output) as path:
        path.write_text(text)
    print(f"cost: {cfg.output}")


if __name__ == "__main__":
    main()
