"""Partition the earth: ``python tools/partition.py input=photos.csv output=cells.npz max_photos=10000``."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from tools.cli import command
from tools.predict import literal_paths


def literal_inputs(words: list[str]) -> list[str]:
    """Quote paths and patterns, but leave a list to Hydra."""
    return [word if word.endswith("]") and "=[" in word else literal_paths([word])[0] for word in words]


@command("partition", literal_inputs)
def main(cfg: DictConfig) -> None:
    """Command line."""
    import time
    from pathlib import Path

    from rich.console import Console

    from mnvision.errors import UserError
    from mnvision.figures_partition import save_partition_map
    from mnvision.geo.coordinate_columns import CoordinateColumns
    from mnvision.geo.coordinate_files import coordinate_paths
    from mnvision.geo.partition import PartitionSettings
    from mnvision.geo.partition_tables import describe, partition_tables

    if not cfg.input:
        raise UserError("no input given; tools/partition.py needs input=FILE with the coordinates of photos")
    output = Path(cfg.output).expanduser()
    if output.suffix != ".npz":
        raise UserError(f"output={cfg.output}: a partition is written as .npz; give a name such as cells.npz")
    settings = PartitionSettings(cfg.max_photos, cfg.min_photos, cfg.min_level, cfg.max_level)
    inputs = OmegaConf.to_container(cfg.input) if OmegaConf.is_list(cfg.input) else str(cfg.input)
    columns = CoordinateColumns(**OmegaConf.to_container(cfg.columns))  # type: ignore[arg-type]
    start = time.perf_counter()
    with Console().status("reading") as status:
        partition, report = partition_tables(
            coordinate_paths(inputs),  # type: ignore[arg-type]
            settings,
            columns,
            lambda rows: status.update(f"{rows:,} places"),
        )
    seconds = time.perf_counter() - start
    partition.save(output)
    for line in [*report.lines(), *describe(partition), f"built in {seconds:.1f} s"]:
        print(line)
    if cfg.map:
        save_partition_map(partition, output.with_suffix(".png"), report.density)
        print(f"map: {output.with_suffix('.png')}")
    print(f"partition: {output}")


if __name__ == "__main__":
    main()
