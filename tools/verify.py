"""Verify: ``python tools/verify.py checkpoint=best.ckpt a.jpg b.jpg``, or ``... pairs=FILE root=FOLDER``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from mnvision.errors import UserError
from tools.cli import command, quoted
from tools.predict import literal_paths

if TYPE_CHECKING:
    from mnvision.prediction.embeddings import EmbeddingPredictor

PATHS = ("checkpoint", "first", "second", "pairs", "root", "landmarks", "save", "output")


def expand_pictures(words: list[str]) -> list[str]:
    """Take two bare words for the two pictures, and quote all paths."""
    flags = {i + 1 for i, word in enumerate(words) if word in ("--cfg", "-c", "--info", "-i", "--package", "-p")}
    bare = [i for i, word in enumerate(words) if i not in flags and "=" not in word and word[:1] not in ("-", "~")]
    if bare and len(bare) != 2:
        raise UserError(f"{len(bare)} pictures given ({' '.join(words[i] for i in bare[:3])}); give two to compare")
    named = dict(zip(bare, ("first", "second")))
    pictures = [f"{key}={quoted(words[i])}" for i, key in named.items()]
    return [*literal_paths([word for i, word in enumerate(words) if i not in named], PATHS), *pictures]


def plain_points(node: Any) -> Any:
    """The option ``points`` as text or lists."""
    return OmegaConf.to_container(node) if isinstance(node, ListConfig) else node


@command("verify", expand_pictures)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from mnvision.export.runtime import is_exported
    from mnvision.prediction.embedding_files import load_embedder

    if not cfg.checkpoint:
        raise UserError("no checkpoint given; tools/verify.py needs checkpoint=FILE and a.jpg b.jpg, or pairs=FILE")
    if bool(cfg.pairs) == bool(cfg.first or cfg.second) or bool(cfg.first) != bool(cfg.second):
        raise UserError("give two pictures (a.jpg b.jpg), or a list of pairs (pairs=FILE root=FOLDER)")
    if cfg.save and not cfg.pairs:
        raise UserError(f"save={cfg.save}: a threshold is calibrated on pairs; give pairs=FILE root=FOLDER")
    if cfg.save and is_exported(cfg.checkpoint):
        raise UserError(f"save={cfg.save}: an exported file is finished; calibrate its checkpoint and export again")
    predictor = load_embedder(cfg.checkpoint, cfg.device)
    if cfg.points is not None:
        predictor.lay_out(plain_points(cfg.points))
    for line in protocol(cfg, predictor) if cfg.pairs else compare(cfg, predictor):
        print(line)


def compare(cfg: DictConfig, predictor: EmbeddingPredictor) -> list[str]:
    """Similarity of two pictures, and the decision where the checkpoint is calibrated."""
    from pathlib import Path

    from mnvision.data.landmarks import read_landmark_table
    from mnvision.prediction.embedding_files import landmarks_of_one

    mirror = predictor.mirrors(cfg.mirror)
    paths = [Path(cfg.first).expanduser(), Path(cfg.second).expanduser()]
    landmarks = None
    if cfg.landmarks:
        table = read_landmark_table(Path(cfg.landmarks).expanduser())
        landmarks = [landmarks_of_one(predictor, table, path) for path in paths]
    found = predictor.compare(*predictor.embed(paths, landmarks, mirror=mirror))
    lines = [f"cosine similarity {found.similarity:.4f}, squared distance {found.squared_distance:.4f}"]
    how = "calibrate with pairs=FILE root=FOLDER save=calibrated.ckpt"
    if found.same is None:
        return [*lines, f"no decision: the checkpoint is not calibrated; {how}"]
    if mirror != predictor.mirror:
        return [*lines, f"no decision: it was calibrated with mirror={str(predictor.mirror).lower()}; {how}"]
    answer = "one person" if found.same else "two people"
    stored = predictor.metadata.calibration
    basis = f"calibrated on {stored['pairs']} pairs" if "pairs" in stored else "from its calibration"
    return [*lines, f"{answer}: the threshold is {found.threshold:.4f}, {basis}"]


def protocol(cfg: DictConfig, predictor: EmbeddingPredictor) -> list[str]:
    """Score a list of pairs, write the report, and a calibrated checkpoint where one is wanted."""
    from pathlib import Path

    from rich.console import Console

    from mnvision.data.pairs import read_pairs
    from mnvision.metrics.verification import acceptance_at, check_candidates, verify
    from mnvision.metrics.verification_rates import check_rate, resolved_rates
    from mnvision.prediction.calibration import save_calibrated
    from mnvision.prediction.folders import progress_bar
    from mnvision.prediction.pair_files import embed_pairs, find_pair_pictures
    from tasks.reports_embeddings import verification_report

    pairs = read_pairs(Path(cfg.pairs).expanduser())
    root = Path(cfg.root).expanduser() if cfg.root else pairs.path.parent
    landmarks = Path(cfg.landmarks).expanduser() if cfg.landmarks else None
    folder, names, positions = find_pair_pictures(pairs, root)
    mirror = predictor.mirrors(cfg.mirror)
    rates = cfg.rates if cfg.rates is None or isinstance(cfg.rates, ListConfig) else [cfg.rates]
    # All that can be refused is, before the time is spent.
    check_candidates(cfg.candidates)
    resolved_rates(rates, pairs.same, pairs.folds)
    if cfg.far is not None:
        check_rate(cfg.far, int((~pairs.same).sum()))
    with progress_bar(Console()) as progress:
        bar = progress.add_task("", total=len(names))
        embeddings, lines = embed_pairs(
            predictor, folder, names, landmarks, cfg.batch_size, mirror, lambda count: progress.advance(bar, count)
        )
    scores = verify(embeddings, positions, pairs.same, pairs.folds, cfg.candidates, rates)
    chosen = None if cfg.far is None else acceptance_at(scores, cfg.far)
    output = Path(cfg.output).expanduser()
    lines += verification_report(output, scores, measured_on=str(pairs.path))
    lines.append(f"report: {output}/")
    if cfg.save and not scores.separates:
        raise UserError(
            f"save={cfg.save}: not written, as pairs of one person are no more alike than pairs of two (AUC "
            f"{scores.auc:.4f}): train longer, or on people like these; report: {output}/"
        )
    if cfg.save:
        calibration = scores.calibration(mirror, chosen)
        save_calibrated(cfg.checkpoint, Path(cfg.save).expanduser(), calibration)
        lines.append(f"calibrated at similarity {calibration['similarity']:.4f}: {cfg.save}")
    return lines


if __name__ == "__main__":
    main()
