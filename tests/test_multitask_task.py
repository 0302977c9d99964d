"""Several heads trained together: each learns as its ordinary task does, and what is not trained does not change."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from mnvision.callbacks.ema import EMA
from mnvision.callbacks.run_files import num_images
from mnvision.checkpoints import KEY, Metadata, load_model
from mnvision.errors import UserError
from mnvision.losses.joint import FixedWeights, GradNorm, UncertaintyWeights, conflicts
from mnvision.metrics.joint import Monitored
from mnvision.optim import FineTuning
from tasks.joint_parts import span
from tasks.multitask import MultiTask
from tests.builders_heads import (
    MODELS,
    Gradients,
    HeadData,
    JointData,
    fit,
    head_task,
    joint_batch,
    joint_model,
    joint_task,
)

HEADS = ("ssd", "attributes", "embedding")


def data_of(*names: str, steps: int = 2) -> dict[str, HeadData]:
    return {name: HeadData(name, steps, size=6, seed=number) for number, name in enumerate(names)}


def images_of(data: dict[str, HeadData]) -> Tensor:
    return torch.cat([batch["images"] for one in data.values() for batch in one.val])


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one: Tensor, other: Any) -> bool:
    """But for float32's rounding in sums."""
    return bool((one - other).norm() <= 1e-4 * one.norm() + 1e-6)


def single_gradients(model: Any, data: dict[str, HeadData], name: str, folder: Path) -> dict[str, Tensor]:
    """Of the ordinary task on the ordinary batch."""
    seen = Gradients()
    fit(head_task(name, deepcopy(model).part(name)), data[name], folder, callbacks=[seen], max_steps=1)
    return seen.found


def test_a_joint_step_has_the_gradients_of_the_single_tasks_weighed_and_added(tmp_path: Path):
    data, weights = data_of(*HEADS), {"ssd": 0.5, "attributes": 2.0, "embedding": 3.0}
    model = joint_model(*HEADS)
    alone = {name: single_gradients(model, data, name, tmp_path) for name in HEADS}
    joint = Gradients()
    task = joint_task(model, data, FixedWeights(HEADS, weights))
    # A group of its own for every head: batch statistics are then those of the single tasks, too.
    fit(task, JointData(data, together=False), tmp_path, callbacks=[joint], max_steps=1)
    shared = [name for name in joint.found if name.startswith("model.backbone.")]
    assert len(shared) > 20
    for name in shared:
        expected = sum(weights[head] * found[name] for head, found in alone.items() if name in found)
        assert close(joint.found[name], expected), name
    for head in HEADS:
        own = {name.replace(f"model.heads.{head}.", "model.head.") for name in joint.found if f"heads.{head}." in name}
        assert own == {name for name in alone[head] if name.startswith("model.head.")}
        for name in own:
            found = joint.found[name.replace("model.head.", f"model.heads.{head}.")]
            assert close(found, weights[head] * alone[head][name]), name


def test_one_head_learns_as_its_single_task_does(tmp_path: Path):
    data, model = data_of("attributes", steps=3), joint_model("attributes")
    alone = head_task("attributes", deepcopy(model).part("attributes"))
    single = fit(alone, data["attributes"], tmp_path, max_epochs=2)
    task = joint_task(model, data)
    joint = fit(task, JointData(data, together=True), tmp_path, max_epochs=2)
    for name, value in single.callback_metrics.items():
        stage, _, metric = name.partition("/")
        assert torch.equal(joint.callback_metrics[f"{stage}/attributes/{metric}"], value), name
    assert equal(snapshot(alone.model), snapshot(model.part("attributes")))
    assert task.parts["attributes"].metadata.calibration == alone.metadata.calibration != {}


def test_one_pass_feeds_heads_whose_pictures_overlap():
    """Partial labels: of six pictures four carry attributes and three identities, two of them both."""
    model, data = joint_model("attributes", "embedding"), data_of("attributes", "embedding")
    task, images = joint_task(model, data), data["attributes"].train[0]["images"]
    rows = {"attributes": torch.tensor([0, 1, 2, 3]), "embedding": torch.tensor([5, 2, 3])}
    parts = []
    for name, chosen in rows.items():
        batch = {key: value[: len(chosen)] for key, value in data[name].train[0].items() if key != "images"}
        parts.append({"head": name, "rows": chosen, "batch": batch})
    embedding: Any = task.parts["embedding"]
    embedding.loss = embedding._make_loss(num_identities=3, dim=6)
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    embedding._trainer = SimpleNamespace(global_step=0, is_last_batch=False)
    copy = deepcopy(model).train()
    losses = task.head_losses(  # type: ignore[arg-type]
        task.on_before_batch_transfer({"groups": [{"images": images, "parts": parts}]}, 0)
    )
    (features,) = copy.features(images.contiguous(memory_format=torch.channels_last)).values()
    logits = copy.part("attributes").answer([features[:4]])
    raw = copy.part("embedding").answer([features[[5, 2, 3]]])
    expected = {
        "attributes": task.parts["attributes"].loss(logits, parts[0]["batch"]["labels"]),  # type: ignore[operator]
        "embedding": embedding.loss(raw, parts[1]["batch"]["labels"])["loss"],
    }
    for name, loss in expected.items():
        assert torch.allclose(losses[name], loss, rtol=1e-5)


def test_rows_that_follow_each_other_are_a_slice():
    assert span(torch.tensor([3, 4, 5])) == slice(3, 6)
    assert span(slice(0, 2)) == slice(0, 2)
    odd = torch.tensor([3, 5, 4])
    assert span(odd) is odd


def test_several_batches_of_a_head_count_as_one_of_their_mean(tmp_path: Path):
    data, model = data_of("attributes"), joint_model("attributes")
    task = joint_task(model, data)
    batches = [joint_batch({"attributes": batch}, True)["groups"][0] for batch in data["attributes"].train]

    class Steps(JointData):
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader([{"groups": batches}], batch_size=None)  # type: ignore[arg-type]

    seen, copy = Gradients(), deepcopy(model)
    fit(task, Steps(data, together=False), tmp_path, callbacks=[seen], max_steps=1)
    part = copy.part("attributes").train()
    losses = [task.parts["attributes"].loss(part(b["images"]), b["labels"]) for b in data["attributes"].train]  # type: ignore[operator]
    torch.stack(losses).mean().backward()
    weight = copy.heads["attributes"].fc.weight  # type: ignore[union-attr]
    assert torch.allclose(seen.found["model.heads.attributes.fc.weight"], weight.grad, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
    assert num_images({"groups": batches}) == 12


def test_every_weight_is_saved_once_and_the_file_is_enough(tmp_path: Path):
    data, model = data_of(*HEADS), joint_model(*HEADS)
    task = joint_task(model, data)
    trainer = fit(task, JointData(data, together=True), tmp_path, limit_val_batches=0)
    state = task.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    assert [name for name in state if not name.startswith("model.")] == ["tasks.embedding.loss.centres"]
    assert state["tasks.embedding.loss.centres"].shape == (3, 6)
    assert sum(p.numel() for p in task.parameters()) == sum(p.numel() for p in model.parameters()) + 3 * 6
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    loaded, metadata = load_model(tmp_path / "all.ckpt")
    assert metadata.kind == "multitask"
    assert list(metadata.heads) == list(HEADS)
    assert metadata.heads["attributes"]["class_names"] == ["Red", "Dark"]
    images = images_of(data)[:2]
    model.eval()
    for name in HEADS:
        one, other = loaded.part(name)(images), model.part(name)(images)
        both = zip(one.values(), other.values()) if isinstance(one, dict) else [(one, other)]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in both)


def test_names_of_heads_stand_in_every_log_and_the_joint_score_is_their_weighted_mean(tmp_path: Path):
    data, model = data_of("attributes", "embedding"), joint_model("attributes", "embedding")
    monitored = {
        "attributes": Monitored("val/mAP", "max", reference=0.8, weight=3.0),
        "embedding": Monitored("val/eer", "min", reference=0.2),
    }
    task = joint_task(model, data, UncertaintyWeights(list(data)), monitored=monitored, conflict_every=1)
    trainer = fit(task, JointData(data, together=True), tmp_path)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert {name.count("/") for name in metrics if name not in ("train/loss", "val/joint")} == {2}
    assert {name for name in metrics if "weight" in name} == {"train/weight/attributes", "train/weight/embedding"}
    assert -1 <= metrics["train/conflict/attributes_embedding"] <= 1
    relative = 3 * metrics["val/attributes/mAP"] / 0.8 + 0.2 / metrics["val/embedding/eer"]
    assert metrics["val/joint"] == pytest.approx(relative / 4, rel=1e-5)
    assert task.headline == ["val/attributes/mAP", "val/embedding/eer"]


def test_a_metric_that_is_a_mean_over_pictures_can_be_monitored(tmp_path: Path):
    data, model = data_of("attributes"), joint_model("attributes")
    data["attributes"].val[1] = {key: value[:2] for key, value in data["attributes"].val[1].items()}
    task = joint_task(model, data, monitored={"attributes": Monitored("val/loss", "min")})
    trainer = fit(task, JointData(data, together=True), tmp_path)
    loss = float(trainer.callback_metrics["val/attributes/loss"])
    assert float(trainer.callback_metrics["val/joint"]) == pytest.approx(1 / loss, rel=1e-5)


@pytest.mark.parametrize("norms", ["shared", "per_head"])
def test_a_frozen_trunk_and_carried_heads_stay_bit_for_bit(norms: str, tmp_path: Path):
    """Under averaging, weight decay, momentum and every switch between training and evaluation."""
    model = joint_model("attributes", "ssd", "embedding", norms=norms)
    data = data_of("embedding", steps=3)
    task = joint_task(model, data, optimizer=partial(torch.optim.AdamW, lr=0.05, weight_decay=0.5))
    task.fine_tune(FineTuning(freeze="backbone"))
    assert task.carried == ["attributes", "ssd"]
    averaged, images = EMA(decay=0.9), images_of(data)
    model.eval()
    before, answers = snapshot(model), {name: model.part(name)(images) for name in ("attributes", "ssd")}
    model.train()
    fit(task, JointData(data, together=norms == "shared"), tmp_path, max_epochs=2, callbacks=[averaged])
    assert averaged.averaged is not None
    for after in (model.eval(), averaged.averaged):
        state = after.state_dict()
        changed = {name.split(".")[0] for name in before if not torch.equal(before[name], state[name])}
        own = {name for name in before if not torch.equal(before[name], state[name])}
        assert changed == ({"heads"} if norms == "shared" else {"heads", "norms"})
        assert all(".embedding." in name for name in own)
        assert torch.equal(after.part("attributes")(images), answers["attributes"])  # type: ignore[operator]
        found = after.part("ssd")(images)  # type: ignore[operator]
        assert all(torch.equal(found[key], value) for key, value in answers["ssd"].items())


def test_partly_frozen_and_slower_layers_are_those_of_the_single_task(tmp_path: Path):
    data, model = data_of("attributes", "embedding"), joint_model("attributes", "embedding", norms="per_head")
    task = joint_task(model, data)
    task.fine_tune(FineTuning(freeze=2, layer_decay=0.5))
    stem = snapshot(model.backbone.stem)
    fit(task, JointData(data, together=False), tmp_path, limit_val_batches=0)
    assert equal(stem, snapshot(model.backbone.stem))
    rates = {id(p): group.get("lr_scale", 1.0) for group in task.parameter_groups() for p in group["params"]}
    blocks = len(model.backbone.blocks)
    for part in (model.part("attributes"), model.part("embedding")):
        block = part.backbone.blocks[4]
        assert {rates[id(p)] for p in block.parameters()} == {0.5 ** (blocks - 4)}
    assert rates[id(model.heads["embedding"].fc.weight)] == 1.0  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("weighting", [UncertaintyWeights, GradNorm])
def test_a_resumed_run_is_the_whole_run(weighting: Callable[..., Any], tmp_path: Path):
    def task() -> MultiTask:
        data = data_of("attributes", "embedding")
        return joint_task(joint_model(*data), data, weighting(list(data)), partial(torch.optim.AdamW, lr=0.01))

    def run(one: MultiTask, epochs: int, ckpt: Path | None = None) -> pl.Trainer:
        data = JointData(data_of("attributes", "embedding"), together=True)
        options: dict[str, Any] = {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2, "callbacks": [EMA(0.9)]}
        return fit(one, data, tmp_path, ckpt, max_epochs=epochs, **options)

    whole, half, rest = task(), task(), task()
    trainer = run(whole, 3)
    run(half, 1).save_checkpoint(tmp_path / "half.ckpt")
    again = run(rest, 3, tmp_path / "half.ckpt")
    assert equal(snapshot(whole), snapshot(rest))
    assert again.callback_metrics.keys() == trainer.callback_metrics.keys()
    for name, value in trainer.callback_metrics.items():
        assert torch.equal(value, again.callback_metrics[name]), name
    assert rest.parts["attributes"].metadata.calibration == whole.parts["attributes"].metadata.calibration


def test_gradients_are_compared_in_the_last_layer_that_all_heads_use():
    model, data = joint_model(*HEADS), data_of(*HEADS)
    task = joint_task(model, data)
    assert task.last_shared is model.backbone.blocks[-1].pointwise.conv.weight  # type: ignore[union-attr]
    shallow = joint_model(*HEADS)
    shallow.part("embedding").backbone.blocks = shallow.part("embedding").backbone.blocks[:5]
    assert joint_task(shallow, data).last_shared is shallow.backbone.blocks[4].pointwise.conv.weight  # type: ignore[union-attr]


def test_conflicts_are_those_of_the_trunks_gradients(tmp_path: Path):
    data, model = data_of("attributes", "embedding"), joint_model("attributes", "embedding")
    copy, alone = deepcopy(model), {}
    for name in data:
        alone[name] = single_gradients(copy, data, name, tmp_path)
    task = joint_task(model, data, conflict_every=1)
    trainer = fit(task, JointData(data, together=False), tmp_path, max_steps=1, limit_val_batches=0)
    names = [name for name in alone["attributes"] if name.startswith("model.backbone.")]
    flat = [torch.cat([found[name].flatten() for name in names]) for found in alone.values()]
    expected = torch.cosine_similarity(*flat, dim=0)
    assert float(trainer.callback_metrics["train/conflict/attributes_embedding"]) == pytest.approx(
        float(expected), abs=1e-4
    )
    assert not conflicts({}, [])


def test_gradients_of_a_frozen_trunk_are_not_to_be_had():
    data = data_of("attributes", "embedding")
    for options in ({"weighting": GradNorm(list(data))}, {"conflict_every": 5}):
        task = joint_task(joint_model(*data), data, **options)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="the trunk is frozen, so it has no gradients to compare"):
            task.fine_tune(FineTuning(freeze="backbone"))


def test_a_run_with_other_attributes_is_not_resumed(tmp_path: Path):
    data = data_of("attributes")
    task = joint_task(joint_model("attributes"), data)
    fit(task, JointData(data, together=True), tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    other = joint_task(joint_model("attributes"), data)
    other.parts["attributes"].metadata.class_names = ["Dark", "Red"]
    with pytest.raises(UserError, match="trained on the attributes Red, Dark, but the data have Dark, Red"):
        fit(other, JointData(data, together=True), tmp_path, tmp_path / "last.ckpt", max_epochs=2)
    assert Metadata.from_dict(content[KEY], tmp_path).head("attributes").model == MODELS["attributes"]
