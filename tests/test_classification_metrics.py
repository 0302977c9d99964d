"""ClassificationEvaluator against torchmetrics and hand-worked counts; gathering over two real processes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed

from mnvision.errors import UserError
from mnvision.metrics.classification import ClassificationEvaluator
from mnvision.metrics.coco import CocoEvaluator


def names(count):
    return [f"class {index}" for index in range(count)]


def test_hand_worked():
    evaluator = ClassificationEvaluator(["ant", "bee", "cat"])
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [3, 1, 2], [0, 0, 0]])
    evaluator.update(logits, torch.tensor([0, 1, 0, 0]), torch.arange(4))
    scores = evaluator.compute()
    assert scores.top1 == 0.75
    assert scores.top5 is None
    assert scores.per_class == {"ant": 1.0, "bee": 0.0, "cat": -1.0}
    assert scores.mean_per_class == 0.5
    assert scores.confusion.tolist() == [[3, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert scores.num_samples == 4
    assert "top5" not in scores.to_dict()
    assert json.loads(json.dumps(scores.to_dict()))["top1"] == 0.75
    assert scores.table().splitlines()[0].endswith("0.750")


@pytest.mark.parametrize("classes", [6, 40])
def test_equals_torchmetrics(classes):
    # Imported here because the processes of the last test read this file too, and the import takes seconds.
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(517, classes, generator=generator)
    labels = torch.randint(classes, (517,), generator=generator)
    evaluator = ClassificationEvaluator(names(classes))
    for part in torch.arange(517).split(64):
        evaluator.update(logits[part], labels[part], part)
    scores = evaluator.compute()
    assert scores.top1 == pytest.approx(float(multiclass_accuracy(logits, labels, classes, average="micro")))
    top5 = multiclass_accuracy(logits, labels, classes, average="micro", top_k=5)
    assert scores.top5 == pytest.approx(float(top5))
    assert scores.mean_per_class == pytest.approx(float(multiclass_accuracy(logits, labels, classes)))
    assert (scores.confusion == multiclass_confusion_matrix(logits, labels, classes).numpy()).all()
    assert "Top-5" in scores.table()


def test_constant_logits_are_not_right_everywhere():
    evaluator = ClassificationEvaluator(names(10))
    evaluator.update(torch.zeros(10, 10), torch.arange(10), torch.arange(10))
    scores = evaluator.compute()
    assert (scores.top1, scores.top5) == (0.1, 0.5)


def test_a_repeated_sample_counts_once():
    evaluator = ClassificationEvaluator(names(2))
    evaluator.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([5, 5]))
    evaluator.update(torch.eye(2), torch.tensor([1, 0]), torch.tensor([5, 6]))
    for _ in range(2):  # computing twice counts nothing twice
        scores = evaluator.compute()
        assert (scores.num_samples, scores.num_repeated, scores.top1) == (2, 2, 0.5)
    assert "2 repeated" in scores.table()


def test_nothing_counted():
    scores = ClassificationEvaluator(names(7)).compute()
    assert (scores.top1, scores.top5, scores.mean_per_class, scores.num_samples) == (-1.0, -1.0, -1.0, 0)


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (torch.zeros(2, 4), torch.tensor([0, 1]), "expected .B, 3."),
        (torch.zeros(2, 3), torch.tensor([0]), "one per sample"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "sample 1: label 3"),
        (torch.zeros(2, 3), torch.tensor([-1, 2]), "sample 0: label -1"),
        (torch.tensor([[0.0, 1, 2], [0, float("nan"), 5]]), torch.tensor([0, 0]), "sample 1.*NaN"),
    ],
)
def test_bad_batches_are_refused(logits, labels, words):
    with pytest.raises(UserError, match=words):
        ClassificationEvaluator(names(3)).update(logits, labels, torch.arange(2))


def test_bad_names_are_refused():
    with pytest.raises(UserError, match="no class names"):
        ClassificationEvaluator([])
    with pytest.raises(UserError, match="'a' occurs twice"):
        ClassificationEvaluator(["a", "b", "a"])


def _classifier_samples():
    generator = np.random.default_rng(7)
    logits = torch.from_numpy(generator.normal(size=(11, 6)).astype(np.float32))
    return logits, torch.from_numpy(generator.integers(0, 6, 11)), torch.arange(11)


_GROUND_TRUTH = {
    "images": [{"id": image} for image in range(11)],
    "categories": [{"id": 5, "name": "thing"}],
    "annotations": [
        {"id": image + 1, "image_id": image, "category_id": 5, "bbox": [image, 0, 50, 50]} for image in range(11)
    ],
}


def _detections(images):
    boxes = torch.tensor([[[0.0, 0.0, 50.0, 50.0], [99.0, 0.0, 120.0, 9.0]]]).repeat(len(images), 1, 1)
    scores = torch.stack([torch.tensor([0.5 + image / 50, 0.45]) for image in images])
    return {"boxes": boxes, "scores": scores, "labels": torch.zeros(len(images), 2, dtype=torch.int64)}


def _evaluate(mine):
    classifier, detector = ClassificationEvaluator(names(6)), CocoEvaluator(_GROUND_TRUTH)
    logits, labels, indices = _classifier_samples()
    for part in torch.tensor(mine).split(4):
        classifier.update(logits[part], labels[part], indices[part])
        detector.update(part, _detections(part.tolist()), [5])
    classifier.gather()
    detector.gather()
    return classifier.compute(), detector.compute()


def _process(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    # 11 samples over 2 processes: the sampler repeats sample 0 to fill up.
    classifier, detector = _evaluate([*range(rank, 11, 2), *([0] if rank else [])])
    values = {
        "classifier": classifier.to_dict(),
        "confusion": classifier.confusion.tolist(),
        "coco": detector.to_dict(),
    }
    (folder / f"{rank}.json").write_text(json.dumps(values))
    distributed.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path):
    mp.spawn(_process, (tmp_path,), nprocs=2)
    classifier, detector = _evaluate(list(range(11)))
    assert 0 < detector.AP < 1
    for rank in range(2):
        values = json.loads((tmp_path / f"{rank}.json").read_text())
        assert values["classifier"].pop("num_repeated") == 1
        assert values["coco"].pop("num_repeated") == 1
        assert values["confusion"] == classifier.confusion.tolist()
        assert values["classifier"].items() <= classifier.to_dict().items()
        assert values["coco"].items() <= detector.to_dict().items()
        assert len(values["coco"]) == len(detector.to_dict()) - 1
