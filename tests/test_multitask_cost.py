"""The cost of several heads on one trunk against that of their single-task models, counted one by one."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnvision.build import build_model
from mnvision.cost import measure
from mnvision.cost_multitask import HEAD, JOINT, SINGLES, TRUNK, JointCost, joint_cost
from mnvision.errors import UserError
from mnvision.latency.joint import time_parts
from tests.builders_models import CLASSIFIER
from tests.builders_multitask import FASTER, MODELS, at, joint_model, save_joint
from tools.cost import main


def rows(cost: JointCost, part: str) -> dict[str, Any]:
    return {row.name: row for row in cost.rows if row.part == part}


def alone(config: dict[str, Any]) -> Any:
    model = build_model(config)
    return measure(model, model.resolution, torch.uint8)


@pytest.mark.parametrize("norms", ["shared", "per_head"])
def test_rows_add_up_to_the_models_themselves(norms: str):
    models = {**MODELS, "regions": FASTER}
    model = joint_model(*models, norms=norms, regions=FASTER)
    cost = joint_cost(model)
    singles = {name: alone(config) for name, config in models.items()}
    assert {n: (row.mult_adds, row.params) for n, row in cost.single.items()} == {
        name: (one.mult_adds, one.params) for name, one in singles.items()
    }
    assert cost.row(SINGLES).mult_adds == sum(one.mult_adds for one in singles.values())
    assert cost.row(JOINT).params == sum(p.numel() for p in model.parameters())
    whole = measure(model, 96, torch.uint8)
    assert cost.row(JOINT).mult_adds == whole.mult_adds
    assert cost.row(JOINT).params == whole.params


def test_heads_are_what_their_layers_are():
    cost = joint_cost(joint_model())
    heads = rows(cost, HEAD)
    for name in ("attributes", "classifier"):
        assert (heads[name].mult_adds, heads[name].params) == (256 * 3, 256 * 3 + 3)
    assert heads["embedding"].mult_adds == 256 * 16
    (trunk,) = rows(cost, TRUNK).values()
    # a body of alpha 0.25: 40,774,272 multiply-adds at 224 px without the classifier, and 1/5.44 of it at 96 px
    assert trunk.mult_adds == 40774272 * 96 * 96 // (224 * 224)
    assert trunk.params == 207600 + 5472


def test_every_size_has_its_row_of_the_trunk_and_parameters_count_once():
    cost = joint_cost(joint_model("ssd", "attributes", "small", small=at(CLASSIFIER, 64)))
    trunk = rows(cost, TRUNK)
    assert {name: row.resolution for name, row in trunk.items()} == {"ssd + attributes": 96, "small": 64}
    assert trunk["small"].params == 0
    assert trunk["small"].mult_adds * 96 * 96 == trunk["ssd + attributes"].mult_adds * 64 * 64
    assert cost.row(JOINT).resolution == 0
    assert cost.row(JOINT).mult_adds == sum(row.mult_adds for row in cost.rows if row.part in (TRUNK, HEAD))


def test_a_model_is_left_as_it_was():
    model = joint_model("ssd", "attributes").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    joint_cost(model)
    assert model.training
    assert model.part("ssd").head.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_times_are_there_for_every_row_and_threads_are_given_back():
    model = joint_model("ssd", "attributes", "small", small=at(CLASSIFIER, 64))
    threads = torch.get_num_threads()
    cost = joint_cost(model).timed(time_parts(model, seconds=0.02))
    assert torch.get_num_threads() == threads
    assert all(row.ms is not None and row.ms > 0 for row in (*cost.rows, *cost.single.values()))
    assert cost.row(SINGLES).ms == pytest.approx(sum(row.ms or 0 for row in cost.single.values()))
    assert cost.time_ratio == pytest.approx((cost.row(SINGLES).ms or 0) / (cost.row(JOINT).ms or 1))
    for seconds, count in ((0, 1), (True, 1), (1, 0)):
        with pytest.raises(UserError, match=r"seconds=|threads="):
            time_parts(model, seconds=seconds, threads=count)


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> Callable[..., str]:
    save_joint(tmp_path / "all.ckpt")

    def run(*words: str) -> str:
        given = [word.replace("ALL", str(tmp_path / "all.ckpt")) for word in words]
        monkeypatch.setattr(sys, "argv", ["cost.py", *given])
        main()
        return str(capsys.readouterr().out)

    return run


def test_the_tool_says_it_in_words_and_numbers(run_tool: Callable[..., str]):
    text = run_tool("checkpoint=ALL")
    assert "trunk 90.8 %, ssd +9.2 %, attributes +0.0093 %" in text
    assert "4 single models would take 3.72x the multiply-adds and 2.65x the parameters" in text
    plain = json.loads(run_tool("checkpoint=ALL", "format=json", "time=true", "seconds=0.02"))
    assert plain["singles_over_joint"]["mult_adds"] == pytest.approx(3.7228, abs=1e-3)
    assert all(row["ms"] > 0 for row in plain["rows"])
    table = list(csv.DictReader(io.StringIO(run_tool("checkpoint=ALL", "format=csv"))))
    assert [row["part"] for row in table] == ["trunk", "head", "head", "head", "head", "joint", "singles"]
    assert "head.embedding" in run_tool("checkpoint=ALL", "by=part")
    assert "head.ssd" in run_tool("checkpoint=ALL", "by=layer")


def test_the_tool_composes_heads_without_data(run_tool: Callable[..., str]):
    words = ("backbone.alpha=0.5", "backbone.resolution=160", "attributes.backbone.resolution=96", "format=json")
    plain = json.loads(run_tool("task=multitask", "heads=[embedding,attributes]", *words))
    found = {(row["part"], row["resolution"]): row["mult_adds"] for row in plain["rows"]}
    assert found["trunk", 160] == 76012800  # test_cost.py's number for the body
    assert found["trunk", 96] == 76012800 * 96 * 96 // (160 * 160)
    assert found["head", 96] == 512 * 40


def test_of_a_checkpoint_some_heads_can_be_counted(run_tool: Callable[..., str]):
    plain = json.loads(run_tool("checkpoint=ALL", "heads=[attributes]", "format=json"))
    single = alone(MODELS["attributes"])
    assert (plain["mult_adds"], plain["params"]) == (single.mult_adds, single.params)
    rows = list(csv.DictReader(io.StringIO(run_tool("checkpoint=ALL", "heads=[ssd,attributes]", "format=csv"))))
    assert [row["name"] for row in rows if row["part"] == "head"] == ["ssd", "attributes"]
    total = joint_cost(joint_model("ssd", "attributes")).row(JOINT)
    assert [int(row["mult_adds"]) for row in rows if row["part"] == "joint"] == [total.mult_adds]


def test_what_the_tool_refuses(run_tool: Callable[..., str], capsys: Any):
    for words, said in (
        (("by=head",), "by=head: this model has one head"),
        (("time=true",), "tools/benchmark.py times it"),
        (("checkpoint=ALL", "by=layer", "time=true"), "not by layer"),
        (("checkpoint=ALL", "by=row"), "by=row: choose"),
        (("checkpoint=ALL", "time=yes please"), "time=yes please: give true or false"),
        (("task=multitask", "heads=[ssd,ssd]"), "ssd is named twice"),
        (("heads=[ssd]",), "give checkpoint=FILE with several heads, or task=multitask"),
        (("checkpoint=ALL", "heads=[none]"), "there is no head 'none'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_tool(*words)
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
