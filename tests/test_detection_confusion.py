"""Detection confusion matrices worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mnvision.errors import UserError
from mnvision.metrics.coco import CocoEvaluator
from tests.coco_reference import annotation, detection, results_of, tiny


def test_confusion_matrix_hand_worked():
    content = tiny()
    content["annotations"] += [
        annotation(3, 9, 7, [0, 0, 50, 50]),
        annotation(4, 9, 7, [100, 100, 80, 80], crowd=1),
    ]
    entries = [
        detection(4, 3, [0, 0, 100, 100], 0.9),  # cat found
        detection(4, 3, [0, 0, 100, 99], 0.8),  # the same again: background taken for a cat
        detection(4, 7, [200, 0, 100, 100], 0.7),  # cat taken for a dog
        detection(9, 7, [0, 0, 50, 20], 0.9),  # IoU 0.4: the dog is missed, background taken for a dog
        detection(9, 7, [110, 110, 20, 20], 0.9),  # inside a crowd of dogs: left out
        detection(9, 3, [110, 110, 20, 20], 0.9),  # no cat there
        detection(9, 7, [0, 0, 50, 50], 0.4),  # below the threshold
    ]
    evaluator = CocoEvaluator(content)
    evaluator.add(results_of(entries), np.array([4, 9]))
    # Order cat (id 3), dog (id 7), background.
    assert evaluator.confusion(0.5).tolist() == [[1, 1, 0], [0, 0, 1], [2, 1, 0]]
    assert evaluator.confusion(0.3).tolist() == [[1, 1, 0], [0, 1, 0], [2, 1, 0]]
    with pytest.raises(UserError, match="score_threshold"):
        evaluator.confusion(1.5)


def test_confusion_prefers_the_own_class():
    content = tiny()
    content["annotations"] = [annotation(1, 4, 3, [0, 0, 100, 100]), annotation(2, 4, 7, [0, 0, 100, 90])]
    entries = [detection(4, 3, [0, 0, 100, 90], 0.9), detection(4, 7, [0, 0, 100, 90], 0.8)]
    evaluator = CocoEvaluator(content)
    evaluator.add(results_of(entries), np.array([4]))
    assert evaluator.confusion().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
