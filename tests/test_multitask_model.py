"""Several heads on one trunk: every part answers as the single-task model of the same weights does."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from mnvision.build import build_model
from mnvision.errors import UserError
from mnvision.models import Classifier, Detector
from mnvision.multitask import MultiTaskModel, single_weights
from tests.builders_models import CLASSIFIER, DETECTOR
from tests.builders_multitask import FASTER, MODELS, at, blotches, joint_config, joint_model, same


@pytest.mark.parametrize("norms", ["shared", "per_head"])
def test_every_head_answers_as_a_single_model_with_its_weights(norms: str):
    models = {**MODELS, "regions": FASTER}
    joint = joint_model(*models, norms=norms, regions=FASTER)
    images = blotches(3)
    with torch.inference_mode():
        raw, decoded = joint(images), joint.predict(images)
        for name, config in models.items():
            single = build_model(config).eval()  # random weights, until these are loaded strictly
            single.load_state_dict(single_weights(joint, name))
            assert type(single) is type(joint.part(name))
            assert same(raw[name], single(images))
            assert same(decoded[name], single.predict(images))
            assert same(decoded[name], joint.part(name).predict(images))
            assert same(decoded[name], joint.predict(images, [name])[name])


def test_every_weight_is_there_once():
    joint = joint_model("ssd", "classifier")
    keys = list(joint.state_dict())
    assert {key.split(".")[0] for key in keys} == {"backbone", "heads"}
    assert {key.split(".")[1] for key in keys if key.startswith("heads.")} == {"ssd", "classifier"}
    storages = [value.untyped_storage().data_ptr() for value in joint.state_dict().values() if value.numel() > 1]
    assert len(set(storages)) == len(storages)
    trunk = sum(p.numel() for p in build_model(CLASSIFIER).backbone.parameters())
    heads = sum(p.numel() for config in (DETECTOR, CLASSIFIER) for p in build_model(config).head.parameters())
    assert sum(p.numel() for p in joint.parameters()) == trunk + heads


def test_parts_are_the_trunk_and_not_copies_of_it():
    joint = joint_model("ssd", "classifier")
    images = blotches()
    before = joint.part("classifier")(images)
    with torch.no_grad():
        joint.part("ssd").backbone.stem.conv.weight.mul_(1.5)
    assert not torch.equal(joint.part("classifier")(images), before)
    joint.part("ssd")(images)["cls_logits"].sum().backward()
    assert joint.backbone.stem.conv.weight.grad is not None
    assert joint.part("classifier").head.fc.weight.grad is None


def test_a_copy_shares_with_itself_alone():
    joint = joint_model("ssd", "classifier")
    copy = deepcopy(joint)
    images = blotches()
    before = joint(images)
    with torch.no_grad():
        copy.backbone.stem.conv.weight.mul_(1.5)
    assert same(joint(images), before)
    assert copy.part("classifier").backbone.stem is copy.backbone.stem
    assert same(copy(images)["classifier"], copy.part("classifier")(images))
    assert not torch.equal(copy(images)["classifier"], before["classifier"])


@pytest.mark.parametrize("norms", ["shared", "per_head"])
def test_it_moves_and_changes_type_as_one(norms: str):
    joint = joint_model("ssd", "classifier", norms=norms)
    joint.to(torch.float64).to(memory_format=torch.channels_last)
    for name in joint.names:
        part = joint.part(name)
        assert {value.dtype for value in part.state_dict().values() if value.is_floating_point()} == {torch.float64}
        assert part.mean is joint.mean
    joint.to(torch.device("meta"))
    assert {value.device.type for name in joint.names for value in joint.part(name).state_dict().values()} == {"meta"}


@pytest.mark.parametrize("norms", ["shared", "per_head"])
def test_training_mode_reaches_the_parts_and_leaves_them_again(norms: str):
    joint = joint_model("ssd", "classifier", norms=norms)
    for mode in (True, False):
        joint.train(mode)
        parts = [joint.part(name) for name in joint.names]
        assert {module.training for part in parts for module in (part, *part.modules())} == {mode}


def test_norms_of_their_own_are_statistics_scale_and_shift():
    joint = joint_model("ssd", "classifier", norms="per_head").train()
    convolutions = {key for key in joint.state_dict() if ".conv." in key and key.startswith("backbone")}
    assert {key.split(".")[1] for key in joint.state_dict() if key.startswith("norms")} == {"classifier"}
    assert not any(".conv." in key for key in joint.state_dict() if key.startswith("norms"))
    before = {name: single_weights(joint, name) for name in joint.names}
    before = {name: {key: value.clone() for key, value in weights.items()} for name, weights in before.items()}
    joint(blotches(8, seed=5), ["classifier"])
    for key, value in single_weights(joint, "ssd").items():
        assert torch.equal(value, before["ssd"][key])
    moved = [k for k, v in single_weights(joint, "classifier").items() if not torch.equal(v, before["classifier"][k])]
    assert moved
    assert all("running_" in key or "num_batches" in key for key in moved)
    for key in convolutions:
        assert single_weights(joint, "ssd")[key].data_ptr() == single_weights(joint, "classifier")[key].data_ptr()
    assert [names for _, names in joint.passes()] == [["ssd"], ["classifier"]]


def test_the_trunk_runs_once_for_all_heads_of_one_size():
    joint = joint_model()
    calls: list[int] = []
    joint.backbone.stem.register_forward_hook(lambda *_: calls.append(1))
    joint(blotches())
    assert len(calls) == 1
    assert joint.passes() == [((96, 96), ["ssd", "attributes", "embedding", "classifier"])]


def test_heads_of_different_sizes_get_passes_of_their_own():
    joint = joint_model("ssd", "classifier", "small", small=at(CLASSIFIER, 64))
    assert joint.passes() == [((96, 96), ["ssd", "classifier"]), ((64, 64), ["small"])]
    assert joint.passes(["small"]) == [((64, 64), ["small"])]
    with pytest.raises(UserError, match="ssd 96 px, classifier 96 px, small 64 px"):
        _ = joint.resolution
    images = blotches(2, 64)
    assert torch.equal(joint(images, ["small"])["small"], joint.part("small")(images))


def test_a_head_alone_runs_no_more_of_the_trunk_than_it_needs():
    shallow = {**CLASSIFIER, "backbone": {**CLASSIFIER["backbone"], "out_strides": [16]}}
    joint = joint_model("shallow", "classifier", shallow=shallow)
    reached: list[str] = []
    for name, module in joint.backbone.named_modules():
        module.register_forward_hook(lambda *_, name=name: reached.append(name))
    joint(blotches(), ["shallow"])
    assert "blocks.10" in reached
    assert "blocks.11" not in reached
    together = joint(blotches(), ["shallow", "classifier"])
    assert torch.equal(together["shallow"], joint.part("shallow")(blotches()))


def test_the_deepest_head_decides_what_is_built():
    shallow = {**CLASSIFIER, "backbone": {**CLASSIFIER["backbone"], "out_strides": [16]}}
    only = joint_model("shallow", shallow=shallow)
    both = joint_model("shallow", "ssd", shallow=shallow)
    assert (len(only.backbone.blocks), len(both.backbone.blocks)) == (11, 13)
    assert both.backbone.feature_strides == [16, 32]
    assert both.part("shallow").backbone.feature_strides == [16]


def changed(key: str, value: Any) -> dict[str, Any]:
    """A classifier whose backbone has another setting."""
    return {**CLASSIFIER, "backbone": {**CLASSIFIER["backbone"], key: value}}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("alpha", 0.5, "0.25 for ssd and 0.5"), ("activation", "relu", "relu6 for ssd and relu for other")],
)
def test_backbones_that_clash_are_refused_with_the_first_key(key: str, value: Any, said: str):
    with pytest.raises(UserError, match=rf"ssd and other cannot share a trunk: backbone\.{key} is {said}"):
        build_model(joint_config("ssd", "other", other=changed(key, value)))


def test_a_setting_left_out_is_the_usual_one():
    build_model(joint_config("ssd", "other", other=changed("stem_stride", 2)))
    with pytest.raises(UserError, match=r"backbone\.stem_stride is 2 for ssd and 1 for other"):
        build_model(joint_config("ssd", "other", other=changed("stem_stride", 1)))


def test_what_matters_in_training_alone_may_differ():
    model = build_model(joint_config("ssd", "other", other=changed("bn_momentum", 0.1)))
    assert model.part("other").backbone.stem.bn.momentum == model.backbone.stem.bn.momentum == 0.03


def test_pixels_that_clash_are_refused():
    with pytest.raises(UserError, match=r"ssd and other cannot share a trunk: their model\.std differ"):
        build_model(joint_config("ssd", "other", other={**CLASSIFIER, "std": [1.0, 1.0, 1.0]}))


@pytest.mark.parametrize("name", ["", "two words", "a.b", "training", "keys", "1st"])
def test_what_cannot_be_a_name_is_refused(name: str):
    with pytest.raises(UserError, match="cannot be a head's name"):
        build_model(joint_config(name, **{name: CLASSIFIER}))


def test_other_mistakes_end_in_one_line():
    with pytest.raises(UserError, match="at least one head"):
        build_model({**joint_config(), "heads": {}})
    with pytest.raises(UserError, match="norms=some: choose shared or per_head"):
        build_model(joint_config(norms="some"))
    with pytest.raises(UserError, match="no head 'ssdd'; the heads are ssd, classifier"):
        joint_model("ssd", "classifier").part("ssdd")
    with pytest.raises(UserError, match="lacks the key 'backbone'"):
        build_model(joint_config("ssd", "other", other={"_target_": "mnvision.models.Classifier"}))


def test_maps_that_the_trunk_lacks_are_refused():
    parts = {"ssd": Detector.from_config(DETECTOR), "classifier": Classifier.from_config(CLASSIFIER)}
    trunk = build_model(CLASSIFIER).backbone
    with pytest.raises(UserError, match=r"head ssd asks for maps of strides \[16, 32\], the trunk gives \[32\]"):
        MultiTaskModel(trunk, parts)
    wide = build_model(changed("alpha", 0.5)).backbone
    with pytest.raises(UserError, match=r"head classifier cannot sit on this trunk: backbone\.stem"):
        MultiTaskModel(wide, {"classifier": Classifier.from_config(CLASSIFIER)})
