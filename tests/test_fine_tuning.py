"""Starting from a checkpoint, freezing, and learning rates by depth; and the two stages of the paper as two runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.checkpoints import Metadata, load_model, read_checkpoint
from mnvision.errors import UserError
from mnvision.models import Classifier
from mnvision.optim import FineTuning, cosine, parameter_groups, scale_rates
from tasks.classification import ClassificationTask
from tasks.composition import compose_model
from tests.builders_fine_grained import make_dogs, make_web
from tests.test_runs import compose
from tools import cli
from tools.run import evaluate, train

CONFIG: dict[str, Any] = {
    "_target_": "mnvision.models.Classifier",
    "mean": [127.5] * 3,
    "std": [127.5] * 3,
    "backbone": {"_target_": "mnvision.backbones.mobilenet_v1.MobileNetV1", "alpha": 0.25, "resolution": 32},
    "head": {"_target_": "mnvision.heads.classifier.ClassifierHead", "num_classes": None},
    "decoder": {"_target_": "mnvision.heads.classifier.ClassScores"},
}


def small_task(**options: Any) -> ClassificationTask:
    torch.manual_seed(0)
    model, _ = compose_model(CONFIG, ["a", "b"])
    metadata = Metadata("classification", CONFIG, ["a", "b"])
    task = ClassificationTask(
        model, metadata, nn.CrossEntropyLoss(), partial(torch.optim.SGD, lr=1.0, weight_decay=1e-4)
    )
    task.fine_tune(FineTuning(**options))
    return task


def rates(optimizer: torch.optim.Optimizer, module: nn.Module) -> set[float]:
    members = {id(p) for p in module.parameters()}
    return {group["lr"] for group in optimizer.param_groups for p in group["params"] if id(p) in members}


def test_learning_rates_fall_from_the_head_to_the_stem():
    task = small_task(layer_decay=0.5)
    optimizer = task.configure_optimizers()
    backbone = task.model.backbone
    assert rates(optimizer, task.model.head) == {1.0}
    assert rates(optimizer, backbone.blocks[12]) == {0.5}
    assert rates(optimizer, backbone.blocks[0]) == {0.5**13}
    assert rates(optimizer, backbone.stem) == {0.5**14}
    # The rate that a run's log shows is the head's.
    assert optimizer.param_groups[0]["lr"] == 1.0
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in task.parameters())
    depthwise = {id(block.depthwise.conv.weight) for block in backbone.blocks}
    for group in optimizer.param_groups:
        assert all(p.ndim <= 1 or id(p) in depthwise for p in group["params"]) == (group.get("weight_decay") == 0.0)


def test_a_schedule_moves_all_rates_alike():
    layers = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    holder = nn.ParameterList(layers)
    optimizer = torch.optim.SGD(parameter_groups(holder, {id(layers[0]): 0.1}), lr=2.0)
    scale_rates(optimizer)
    schedule = cosine(optimizer, total_steps=10, steps_per_epoch=10, warmup_epochs=0, final_factor=0.0)
    for _ in range(9):
        high, low = (group["lr"] for group in optimizer.param_groups)
        assert low == pytest.approx(high / 10)
        optimizer.step()
        schedule.step()
    assert high < 0.5


def test_without_fine_tuning_the_groups_are_two():
    task = small_task()
    groups = task.parameter_groups()
    assert len(groups) == 2
    assert not any("lr_scale" in group for group in groups)
    assert all(p.requires_grad for p in task.parameters())


@pytest.mark.parametrize(("freeze", "blocks"), [(1, 1), (5, 5), (13, 13), ("backbone", 13)])
def test_frozen_parts_stay_as_they_are_and_the_others_learn(freeze: int | str, blocks: int):
    task = small_task(freeze=freeze)
    batch = {
        "images": torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 1, 0]),
    }
    # Statistics of real pictures, else what a random backbone gives vanishes on its way through the layers.
    norms = [layer for layer in task.model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    task.model.train()(batch["images"])
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    optimizer = task.configure_optimizers()
    task.train()
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(task.model(batch["images"]), batch["labels"]).backward()
        optimizer.step()
    frozen = ("backbone.stem.", *(f"backbone.blocks.{i}." for i in range(blocks)))
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(frozen), name


def test_frozen_parts_stay_in_evaluation_mode():
    task = small_task(freeze=2)
    task.eval()
    task.train()
    backbone = task.model.backbone
    assert task.training
    assert not backbone.stem.bn.training
    assert not backbone.blocks[1].depthwise.bn.training
    assert backbone.blocks[2].depthwise.bn.training
    assert task.model.head.training


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layer_decay": 0}, "layer_decay=0: give a number above 0"),
        ({"layer_decay": 1.5}, "layer_decay=1.5"),
        ({"layer_decay": float("nan")}, "layer_decay=nan"),
        ({"layer_decay": "slow"}, "layer_decay='slow'"),
        ({"freeze": 0}, "freeze=0: give backbone, a number of blocks of at least 1, or null"),
        ({"freeze": True}, "freeze=True"),
        ({"freeze": "head"}, "freeze='head'"),
        ({"freeze": 14}, "freeze=14: the backbone has 13 blocks; give 13 at most, or backbone"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], text: str):
    with pytest.raises(UserError, match=text):
        FineTuning(**options).frozen(MobileNetV1(0.25))


def saved(path: Path, names: list[str], alpha: float = 0.25, kind: str = "Classifier") -> tuple[str, Classifier]:
    """A checkpoint of random weights."""
    torch.manual_seed(7)
    config = {**CONFIG, "backbone": {**CONFIG["backbone"], "alpha": alpha}}
    if kind != "Classifier":
        head = {"_target_": "mnvision.heads.embedding.EmbeddingHead", "dim": 8, "resolution": 32}
        decoder = {"_target_": "mnvision.heads.embedding.UnitLength"}
        config |= {"_target_": f"mnvision.models.{kind}", "head": head, "decoder": decoder}
    model, settled = compose_model(config, names)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    metadata = Metadata(model.kind, settled, names if kind == "Classifier" else [])
    torch.save({"state_dict": state, "mnvision": metadata.to_dict()}, path)
    return str(path), model


def same_backbone(one: Any, two: Any) -> bool:
    pairs = zip(one.backbone.state_dict().values(), two.backbone.state_dict().values())
    return all(torch.equal(a, b) for a, b in pairs)


def test_only_the_backbone_is_taken_unless_the_head_is_asked_for(tmp_path: Path):
    path, source = saved(tmp_path / "a.ckpt", ["cat", "dog", "cow"])
    model, settled = compose_model(CONFIG, ["cat", "dog", "cow"], path)
    assert same_backbone(model, source)
    assert not torch.equal(model.head.fc.weight, source.head.fc.weight)
    assert "init_from" not in settled["backbone"]


def test_rows_of_the_head_follow_the_names(tmp_path: Path):
    path, source = saved(tmp_path / "a.ckpt", ["Japanese_spaniel", "dog", "cow"])
    model, _ = compose_model(CONFIG, ["yak", "cow", "japanese spaniel"], path, init_head=True)
    assert same_backbone(model, source)
    for ours, theirs in ((1, 2), (2, 0)):
        assert torch.equal(model.head.fc.weight[ours], source.head.fc.weight[theirs])
        assert torch.equal(model.head.fc.bias[ours], source.head.fc.bias[theirs])
    assert not any(torch.equal(model.head.fc.weight[0], row) for row in source.head.fc.weight)
    assert model.head.fc.bias[0] == 0


def test_a_backbone_of_another_kind_of_model_will_do(tmp_path: Path):
    path, source = saved(tmp_path / "a.ckpt", [], kind="Embedder")
    model, _ = compose_model(CONFIG, ["cat", "dog"], path)
    assert same_backbone(model, source)
    with pytest.raises(UserError, match=r"the head of .*a.ckpt \(face_embeddings\) has no rows by class"):
        compose_model(CONFIG, ["cat", "dog"], path, init_head=True)


def test_starts_that_cannot_be_taken(tmp_path: Path):
    path, _ = saved(tmp_path / "a.ckpt", ["cat", "dog"])
    wide, _ = saved(tmp_path / "wide.ckpt", ["cat", "dog"], alpha=0.5)
    fitted = {**CONFIG, "backbone": {**CONFIG["backbone"], "fit_width": True}}
    pretrained = {**CONFIG, "backbone": {**CONFIG["backbone"], "pretrained": "keras/0.25_128"}}
    plain = tmp_path / "plain.ckpt"
    torch.save({"state_dict": {}}, plain)
    for config, start, text in (
        (CONFIG, (str(tmp_path / "none.ckpt"), False), "none.ckpt does not exist"),
        (CONFIG, (None, True), "init_head=true takes the head of the checkpoint that init_from=FILE names"),
        (CONFIG, (str(plain), False), "not one of our checkpoints"),
        (CONFIG, (wide, False), r"add backbone.alpha=0.5, or backbone.fit_width=true"),
        (pretrained, (path, False), "two starts; keep one of them"),
        (fitted, (wide, True), "takes 512 features, this one 256; set backbone.alpha as there"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            compose_model(config, ["cat", "cow"], *start)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"no class has the name of one of .*a.ckpt: cow here, cat, dog there"):
        compose_model(CONFIG, ["cow"], path, init_head=True)


def words(root: Path, *more: str) -> list[str]:
    return ["task=fine_grained", f"data.root={root}", "trainer.max_epochs=1", "backbone.resolution=32", *more]


def test_the_two_stages_of_the_paper(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Pretrain on a noisy table, fine-tune on dogs with a frozen beginning, evaluate on their test pictures."""
    web, dogs = make_web(tmp_path / "web"), make_dogs(tmp_path / "dogs")
    first, second, report = tmp_path / "first", tmp_path / "second", tmp_path / "report"
    noisy = ["data=noisy_csv", "data.images=images", "data.val_labels=clean.csv", "loss=generalized_cross_entropy"]
    train(compose(first, *words(web, *noisy)))
    start = first / "checkpoints" / "last.ckpt"

    tuned = [f"init_from={start}", "fine_tuning.freeze=3", "fine_tuning.layer_decay=0.7", "data.val_fraction=0.25"]
    with caplog.at_level("INFO", logger="mnvision"):
        train(compose(second, *words(dogs, *tuned)))
    assert any("note: Stanford Dogs is made of pictures of ImageNet" in line for line in caplog.messages)
    before, after = load_model(start)[0], load_model(second / "checkpoints" / "last.ckpt")[0]
    kept = ("stem.", "blocks.0.", "blocks.1.", "blocks.2.")
    for (name, one), two in zip(before.backbone.state_dict().items(), after.backbone.state_dict().values()):
        if name.startswith(kept) and not name.endswith("num_batches_tracked"):
            assert torch.equal(one, two), name
    assert not torch.equal(
        before.backbone.blocks[12].pointwise.conv.weight, after.backbone.blocks[12].pointwise.conv.weight
    )
    raw = read_checkpoint(second / "checkpoints" / "last.ckpt")
    assert len({group["lr"] / group["initial_lr"] for group in raw["optimizer_states"][0]["param_groups"]}) == 1

    caplog.clear()
    checkpoint = second / "checkpoints" / "last.ckpt"
    with caplog.at_level("INFO", logger="mnvision"):
        evaluate(compose(report, *words(dogs, f"checkpoint={checkpoint}", "split=test"), name="evaluate"))
    assert any("note: Stanford Dogs" in line for line in caplog.messages)
    assert (report / "figures" / "most_confused.png").is_file()

    other = words(dogs, *tuned, f"ckpt_path={checkpoint}", "trainer.max_epochs=2")
    for change in ("fine_tuning.layer_decay=0.8", "fine_tuning.freeze=null"):
        with pytest.raises(UserError, match=r"another fine_tuning.freeze or layer_decay"):
            train(compose(tmp_path / "other", *other, change))
    trainer = train(compose(second, *other))
    assert trainer.global_step == 4


def test_random_weights_are_not_frozen(tmp_path: Path):
    dogs = make_dogs(tmp_path / "dogs")
    with pytest.raises(UserError, match=r"fine_tuning.freeze=backbone would keep random weights: give init_from=FILE"):
        train(compose(tmp_path / "run", *words(dogs, "fine_tuning.freeze=backbone")))


def test_evaluation_does_not_need_the_start_of_the_run():
    from tools.evaluate import TRAINING

    stored = ["task=fine_grained", "init_from=gone.ckpt", "init_head=true", "fine_tuning.freeze=3", "data.boxes=true"]
    stored += ["paths.output_dir=run", "hydra.run.dir=run"]  # else the report replaces the run's own files
    assert cli.merge_overrides(stored, [], TRAINING) == ["task=fine_grained", "data.boxes=true"]
