"""Whole runs of several heads: the command line, what they write, resume, evaluate, and heads added later."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mnvision.checkpoints import KEY, Metadata, load_model, read_checkpoint
from mnvision.errors import UserError
from mnvision.multitask import single_weights
from tests.builders import make_tiny_coco
from tests.builders_faces import make_tiny_celeba
from tests.builders_identities import make_people
from tests.builders_resuming import assert_cut_changes_nothing
from tools import cli
from tools.evaluate import expand_checkpoint
from tools.heads import compose_head, fold, unfold, words_by_head
from tools.run import evaluate, train
from tools.train import expand_start

ROOT = Path(__file__).parents[1]
COMMON = [
    "backbone.alpha=0.25",
    "backbone.resolution=64",
    "trainer.accelerator=cpu",
    "logger=none",
    "scheduler=constant",
    "callbacks.ema.decay=0.9",
    "callbacks.progress=null",
]
SMALL = ["data.batch_size=4", "data.num_workers=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_tiny_coco(root / "coco")
    make_tiny_celeba(root / "celeba", num=30)
    make_people(root / "people", {f"Person_{i}": 2 for i in range(30)})
    return root


def own_words(root: Path, name: str) -> list[str]:
    """Of the single task."""
    roots = {"ssd": "coco", "attributes": "celeba", "embedding": "people"}
    more = ["data.points=arcface", "data.val_fraction=0.3"] if name == "embedding" else []
    return [f"data.root={root / roots[name]}", *SMALL, *more]


def heads_words(root: Path, *names: str) -> list[str]:
    own = [f"{name}.{word}" for name in names for word in own_words(root, name)]
    return ["task=multitask", f"heads=[{','.join(names)}]", *COMMON, *own]


def compose(folder: Path, *words: str, name: str = "config") -> Any:
    """As the command line does it."""
    folder.mkdir(parents=True, exist_ok=True)
    return cli.compose_config(name, [*fold(words), f"paths.output_dir={folder}"])


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def retold(path: Path, words: list[str]) -> Path:
    """The checkpoint with the overrides that a command would have left in it."""
    content = torch.load(path, weights_only=True)
    content[KEY]["overrides"] = fold(words)
    torch.save(content, path)
    return path


def measured(checkpoint: Path, folder: Path, *words: str) -> dict[str, float]:
    expanded = expand_checkpoint([f"checkpoint={checkpoint}", *words])
    folder.mkdir(parents=True, exist_ok=True)
    return evaluate(cli.compose_config("evaluate", [*expanded, f"paths.output_dir={folder}"]), expanded)


class TestCommandLine:
    def test_words_of_heads_are_folded_and_unfolded(self):
        words = [
            *("task=multitask", "backbone.alpha=0.5", "heads=[ssd,attributes]", "ssd.data=shapes"),
            *("ssd.data.num_train=8", "attributes.data.framing={resize:five_points}", "attributes.data.root='a b'"),
        ]
        folded = fold(words)
        assert folded[:2] == words[:2]
        assert len(folded) == 3
        assert unfold(folded) == words
        assert fold(unfold(folded)) == folded
        cfg = cli.compose_config("config", [*folded, "paths.output_dir=."])
        found = words_by_head(cfg)
        assert found["ssd"] == ["data=shapes", "data.num_train=8"]
        head = compose_head("attributes", found["attributes"], cfg)
        assert head.data.framing == {"resize": "five_points"}
        assert head.data.root == "a b"

    def test_heads_take_the_settings_of_their_single_tasks_on_the_common_trunk(self):
        words = ["task=multitask", "heads=[ssd,embedding]", "backbone.alpha=0.5", "backbone.resolution=96", "seed=7"]
        cfg = cli.compose_config("config", [*fold([*words, "ssd.backbone.resolution=160"]), "paths.output_dir=."])
        heads = {name: compose_head(name, own, cfg) for name, own in words_by_head(cfg).items()}
        alone = cli.compose_config("config", ["task=ssd_coco", "paths.output_dir=."])
        assert heads["ssd"].loss == alone.loss
        assert heads["ssd"].backbone.out_strides == [16, 32]
        assert heads["embedding"].backbone.out_strides is None
        assert (heads["ssd"].head.resolution, heads["embedding"].data.resolution) == (160, 96)
        for head in heads.values():
            assert (head.backbone.alpha, head.backbone.stem_stride, head.seed) == (0.5, 2, 7)
        assert heads["ssd"].head.alpha == 0.5

    def test_sweeps_over_words_of_heads_give_a_run_for_every_combination(self):
        words = ["task=multitask", "heads=[ssd,embedding]", "embedding.head.dim=64,128", "ssd.data=shapes,voc"]
        (word,) = [word for word in fold(words) if word.startswith("heads=")]
        values = [f"heads={value}" for value in word.removeprefix("heads=").replace("},{", "}|{").split("|")]
        assert [unfold([value])[1:] for value in values] == [
            ["ssd.data=shapes", "embedding.head.dim=64"],
            ["ssd.data=shapes", "embedding.head.dim=128"],
            ["ssd.data=voc", "embedding.head.dim=64"],
            ["ssd.data=voc", "embedding.head.dim=128"],
        ]
        sets = fold(["task=multitask", "heads=[ssd],[ssd,embedding]", "embedding.head.dim=64"])
        assert sets[-1] == "heads={ssd:[]},{ssd:[],embedding:['head.dim=64']}"

    def test_a_name_of_ones_own_says_its_task(self):
        words = fold(["task=multitask", "heads=[classifier,breeds]", "breeds.task=fine_grained"])
        cfg = cli.compose_config("config", [*words, "paths.output_dir=."])
        own = words_by_head(cfg)
        assert compose_head("breeds", own["breeds"], cfg).data["_target_"].endswith("StanfordDogsDataModule")
        assert compose_head("classifier", own["classifier"], cfg).data["_target_"].endswith("ImageFolderDataModule")

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["heads=[ssd,ssd]"], "heads=[ssd,ssd]: ssd is named twice"),
            (["heads=[sdd]"], "sdd is none of attributes, classifier"),
            (["heads=[sdd]"], "did you mean ssd? give sdd.task=TASK"),
            (["heads=[]"], "no heads given; add heads=[NAME,...], some of attributes"),
            ([], "no heads given; add heads=[NAME,...], some of attributes"),
            (
                ["heads=[ssd]", "ssd.data.batchsize=3"],
                "head ssd: there is no config key 'data.batchsize'; did you mean",
            ),
            (["heads=[ssd]", "ssd.data=shaps"], "head ssd: data=shaps: there is no such choice; did you mean shapes?"),
            (["heads=[ssd,attributes]", "data.root=x"], "write ssd.data.root=... or attributes.data.root=..."),
            (["heads=[ssd]", "teacher=timm"], "teacher=timm: belongs to one head: write ssd.teacher=..."),
            (["heads=[ssd]", "backbone.out_strides=[8]"], "write ssd.backbone.out_strides=..."),
            (["heads=[ssd]", "ssd.backbone.alpha=1"], "ssd.backbone.alpha: the trunk is common to all heads: write"),
            (["heads=[ssd]", "ssd.trainer.max_epochs=1"], "belongs to the whole run: write trainer.max_epochs=..."),
            (["heads=[ssd]", "ssd.model.mean=[0,0,0]"], "belongs to the whole run: write model.mean=..."),
            (["heads=[attributes]", "attribtes.data.root=x"], "no head 'attribtes'; did you mean attributes?"),
            (["heads=[data]"], "'data' cannot be a head's name"),
            (["heads=[mine]", "mine.task=multitask"], "a head is a single task"),
            (["heads=[ssd]", "init_head=true"], "init_head: heads of the checkpoint that are trained again"),
        ],
    )
    def test_wrong_words_get_one_line(self, words: list[str], text: str):
        with pytest.raises(UserError) as caught:
            fold(["task=multitask", *words])
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_words_of_other_tasks_are_left_alone(self):
        words = ["task=ssd_coco", "data.root=x", "-m"]
        assert fold(words) == words

    def test_the_program_refuses_in_one_line(self, tmp_path: Path):
        command = [sys.executable, str(ROOT / "tools/train.py"), "task=multitask", "heads=[ssd]", "ssd.data.rot=3"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("error: head ssd: there is no config key 'data.rot'; did you mean data.root")
        assert done.stderr.count("\n") == 1


class TestRun:
    def test_it_leaves_its_folder_and_evaluation_gives_the_scores_of_every_head_alone(self, data: Path, tmp_path: Path):
        run, words = tmp_path / "run", heads_words(data, "ssd", "attributes", "embedding")
        trainer = train(compose(run, *words, "trainer.max_epochs=2", "multitask.reference={attributes: 0.8}"))
        (first, second) = rows(run)
        assert all((first["val/joint"], second["train/ssd/loss"], second["train/weight/embedding"]))
        assert json.loads((run / "metrics.json").read_text())["monitor"] == "val/joint"
        assert OmegaConf.load(run / "config.yaml").multitask.reference.attributes == 0.8
        checkpoint = retold(last(run), words)
        model, metadata = load_model(checkpoint)
        assert metadata.heads["attributes"]["calibration"]["thresholds"]
        assert metadata.heads["ssd"]["category_ids"] == [2, 7, 90]

        found = measured(checkpoint, tmp_path / "all", "trainer.accelerator=cpu")
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val/") and "joint" not in name:
                assert found[name] == pytest.approx(float(value), abs=1e-6), name
        assert {path.name for path in (tmp_path / "all").iterdir()} >= {
            "ssd",
            "attributes",
            "embedding",
            "metrics.json",
        }
        for name, task in (("ssd", "ssd_coco"), ("attributes", "face_attributes"), ("embedding", "face_embeddings")):
            single = metadata.head(name)
            single.overrides = [f"task={task}", *COMMON, *own_words(data, name)]
            if name == "embedding":
                single.overrides.append("backbone.stem_stride=2")
            state = {f"model.{key}": value for key, value in single_weights(model, name).items()}
            torch.save({"state_dict": state, KEY: single.to_dict()}, tmp_path / f"{name}.ckpt")
            for key, value in measured(tmp_path / f"{name}.ckpt", tmp_path / name).items():
                stage, _, metric = key.partition("/")
                assert found[f"{stage}/{name}/{metric}"] == value, key

    def test_a_run_of_one_head_is_that_of_its_single_task(self, data: Path, tmp_path: Path):
        own = [*COMMON, *own_words(data, "attributes"), "trainer.max_epochs=2", "trainer.gradient_clip_val=5.0"]
        folder = tmp_path / "single"
        folder.mkdir()
        train(cli.compose_config("config", ["task=face_attributes", *own, f"paths.output_dir={folder}"]))
        train(compose(tmp_path / "joint", *heads_words(data, "attributes"), "trainer.max_epochs=2"))
        for single, joint in zip(rows(folder), rows(tmp_path / "joint"), strict=True):
            for key, value in single.items():
                if "/" in key and key != "train/loss":
                    stage, _, metric = key.partition("/")
                    assert joint[f"{stage}/attributes/{metric}"] == value, key
            assert joint["train/loss"] == single["train/loss"]

    def test_a_run_cut_in_the_middle_of_an_epoch_goes_on_bit_for_bit(self, data: Path, tmp_path: Path):
        words = [*heads_words(data, "ssd", "attributes"), "trainer.max_epochs=2", "trainer.precision=bf16-mixed"]
        words += ["trainer.accumulate_grad_batches=2", "multitask.weighting=uncertainty", "multitask.draw=proportional"]
        assert_cut_changes_nothing(tmp_path, *words, "scheduler=cosine", cuts=(2,))
        one, two = (read_checkpoint(last(tmp_path / name)) for name in ("whole", "cut2"))
        assert one["global_step"] == 4
        assert one[KEY]["heads"] == two[KEY]["heads"]

    def test_resume_repeats_the_words_of_the_run(self, tmp_path: Path):
        (tmp_path / ".hydra").mkdir()
        (tmp_path / "checkpoints").mkdir()
        last(tmp_path).touch()
        stored = fold(["task=multitask", "heads=[ssd,embedding]", "ssd.data=shapes", "embedding.head.dim=64", "seed=3"])
        OmegaConf.save(OmegaConf.create(stored), tmp_path / ".hydra" / "overrides.yaml")
        words = unfold(expand_start([f"resume={tmp_path}", "ssd.data.batch_size=2", "trainer.max_epochs=9"]))
        wanted = {"task=multitask", "seed=3", "ssd.data=shapes", "ssd.data.batch_size=2", "embedding.head.dim=64"}
        assert {*wanted, "trainer.max_epochs=9", "heads=[ssd,embedding]"} <= set(words)

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["multitask.weights={sdd: 1.0}"], "multitask.weights: there is no head 'sdd' to train; the heads are"),
            (["multitask.reference={sdd: 1.0}"], "multitask.reference: there is no head 'sdd' to train"),
            (["multitask.weighting=equal"], "multitask.weighting=equal: choose fixed, uncertainty, gradnorm"),
            (["multitask.norms=own"], "norms=own: choose shared or per_head"),
            (["multitask.draw=random"], "draw=random"),
            (["multitask.conflict_every=-1"], "multitask.conflict_every=-1: give a number of at least 0"),
            (["trunk=frozen"], "trunk=frozen: there is no trained trunk: give init_from=FILE"),
            (["trunk=cold"], "trunk=cold: choose frozen, partial, full"),
            (["ssd.data.root=nowhere"], "ssd: "),
            (["ssd.backbone.out_strides=[16,64]"], "out_strides is [16, 64]"),
            (["backbone.stem_stride=1"], "out_strides is [16, 32]"),
            (["ssd.data=unlabelled"], "the data have no labels and there is no teacher: nothing to learn from"),
        ],
    )
    def test_wrong_values_end_in_one_line(self, words: list[str], text: str, data: Path, tmp_path: Path):
        given = [
            word for word in heads_words(data, "ssd") if not (words[0] == "ssd.data=unlabelled" and "coco" in word)
        ]
        if words[0] == "ssd.data=unlabelled":
            words = [*words, f"ssd.data.root={data / 'coco' / 'train2017'}"]
        with pytest.raises(Exception, match=r".") as caught:
            train(compose(tmp_path / "run", *given, "trainer.max_epochs=1", *words))
        line = cli.message_for_user(caught.value)
        assert line is not None
        assert text in line
        assert "\n" not in line


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single-task checkpoint of attributes."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["task=face_attributes", *COMMON, *own_words(data, "attributes"), "trainer.max_epochs=2"]
    train(cli.compose_config("config", [*words, f"paths.output_dir={folder}"]))
    return retold(last(folder), words)


class TestHeadsAddedLater:
    def added(self, start: Path, folder: Path, words: list[str], *more: str) -> Path:
        """Train heads on a checkpoint's trunk, by the words of a command."""
        given = [word for word in words if not word.startswith("backbone.alpha")]
        expanded = expand_start([*given, f"init_from={start}", *more])
        folder.mkdir(parents=True, exist_ok=True)
        train(cli.compose_config("config", [*expanded, f"paths.output_dir={folder}"]))
        return last(folder)

    def test_a_frozen_trunk_answers_as_before_and_every_head_is_evaluated(
        self, trained: Path, data: Path, tmp_path: Path
    ):
        words = [*heads_words(data, "embedding"), "optimizer=adamw", "optimizer.lr=0.05", "optimizer.weight_decay=0.5"]
        both = self.added(trained, tmp_path / "both", words, "trunk=frozen", "trainer.max_epochs=2")
        content, old = read_checkpoint(both), read_checkpoint(trained)["ema_state_dict"]
        for state in (content["ema_state_dict"], {k[6:]: v for k, v in content["state_dict"].items()}):
            for name, value in old.items():
                renamed = name.replace("head.", "heads.attributes.") if name.startswith("head.") else name
                assert torch.equal(state[renamed], value), name
        images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
        (one, _), (two, metadata) = load_model(trained), load_model(both)
        assert torch.equal(one.predict(images), two.part("attributes").predict(images))
        assert torch.equal(one.predict(images), two.predict(images)["attributes"])
        assert list(metadata.heads) == ["attributes", "embedding"]
        single = Metadata.from_dict(read_checkpoint(trained)[KEY], trained)
        assert metadata.heads["attributes"] == single.as_head()

        # What a command would have stored of both heads.
        retold(both, heads_words(data, "attributes", "embedding"))
        found = measured(both, tmp_path / "all")
        alone = measured(trained, tmp_path / "alone")
        assert {
            f"val/attributes/{key.removeprefix('val/')}": value for key, value in alone.items()
        }.items() <= found.items()
        some = measured(both, tmp_path / "some", "heads=[embedding]")
        assert {key for key in some if "attributes" in key} == set()

    def test_a_full_trunk_learns_and_a_head_trained_again_goes_on(self, trained: Path, data: Path, tmp_path: Path):
        words = [*heads_words(data, "attributes"), "trunk=full", "trainer.max_epochs=1", "optimizer.lr=1e-12"]
        path = self.added(trained, tmp_path / "again", words, "callbacks.ema=null")
        start, state = read_checkpoint(trained)["ema_state_dict"], read_checkpoint(path)["state_dict"]
        assert torch.allclose(state["model.heads.attributes.fc.weight"], start["head.fc.weight"], atol=1e-6)
        assert torch.allclose(state["model.backbone.stem.conv.weight"], start["backbone.stem.conv.weight"], atol=1e-6)
        mean = "backbone.stem.bn.running_mean"
        assert not torch.equal(state[f"model.{mean}"], start[mean])

    @pytest.mark.parametrize(
        ("heads", "words", "text"),
        [
            (
                ["ssd"],
                ["backbone.alpha=0.5", "trunk=frozen"],
                "has backbone.alpha=0.25, and backbone.alpha=0.5 is asked",
            ),
            (["ssd"], ["trunk=partial"], "trunk=partial: say how, with fine_tuning.freeze=BLOCKS or"),
            (["ssd"], ["trunk=full", "fine_tuning.freeze=3"], "trunk=full and fine_tuning=...: give trunk=partial"),
            (["ssd"], ["trunk=frozen", "multitask.weighting=gradnorm"], "the trunk is frozen, so it has no gradients"),
            (["ssd"], ["backbone.pretrained=x.h5"], "two starts; keep one of them"),
            (["attributes"], ["attributes.data.attributes=[Red]"], "answers 4 classes (Red, Green, Bright, Rare), its"),
            (["attributes"], ["attributes.task=face_embeddings"], "head attributes of"),
        ],
    )
    def test_what_does_not_fit_is_refused_in_one_line(
        self, heads: list[str], words: list[str], text: str, trained: Path, data: Path, tmp_path: Path
    ):
        given = heads_words(data, *heads)
        if "attributes.task=face_embeddings" in words:
            given = [word for word in given if "celeba" not in word]
            words = [*words, *(f"attributes.{word}" for word in own_words(data, "embedding"))]
        with pytest.raises(UserError) as caught:
            self.added(trained, tmp_path / "run", given, *words, "trainer.max_epochs=1")
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_trunk_without_the_maps_of_a_head_is_refused(self, data: Path, tmp_path: Path):
        folder = tmp_path / "short"
        folder.mkdir()
        words = ["task=face_attributes", *COMMON, *own_words(data, "attributes"), "backbone.out_strides=[16]"]
        train(cli.compose_config("config", [*words, "trainer.max_epochs=1", f"paths.output_dir={folder}"]))
        with pytest.raises(
            UserError, match=r"head ssd asks for maps of strides .16, 32., which the trunk of .* does not give"
        ):
            self.added(last(folder), tmp_path / "run", heads_words(data, "ssd"), "trunk=frozen")


@pytest.mark.slow
def test_two_processes_train_one_model_with_whole_class_centres(data: Path, tmp_path: Path):
    words = [*heads_words(data, "attributes", "embedding"), "trainer.max_epochs=1"]
    ddp = ["trainer.devices=2", "trainer.strategy=ddp", f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "tools/train.py", *words, *ddp],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run")) == 1
    state = read_checkpoint(last(tmp_path / "run"))["state_dict"]
    assert len(state["tasks.embedding.loss.centres"]) == 21
    partial = [*words, "multitask.batches_per_step=1", *ddp[:2], f"hydra.run.dir={tmp_path / 'partial'}"]
    refused = subprocess.run(
        [sys.executable, "tools/train.py", *partial], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "trainer.strategy=ddp_find_unused_parameters_true" in refused.stderr
