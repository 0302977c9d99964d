"""The command line: composition, and errors that name the nearest valid spelling."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from mnvision.errors import UserError
from tools import cli
from tools.train import expand_resume

ROOT = Path(__file__).parents[1]
TASKS = sorted(path.stem for path in (cli.CONF / "task").glob("*.yaml"))


def test_the_shipped_tasks_are_there():
    assert set(TASKS) >= {"ssd_coco", "ssdlite_coco", "ssd_voc", "classification", "imagenet"}


def compose(*overrides: str):
    return cli.compose_config("config", [*overrides, "paths.output_dir=out"])


@pytest.mark.parametrize("task", TASKS)
def test_every_task_composes_and_resolves(task: str):
    cfg = OmegaConf.to_container(compose(f"task={task}"), resolve=True)
    assert cfg["task"]["_target_"].startswith("tasks.")
    module = "mnvision.multitask." if task == "multitask" else "mnvision.models."
    assert cfg["model"]["_target_"].startswith(module)


def test_resolution_and_alpha_flow_by_themselves_whatever_the_order():
    one = compose("backbone.resolution=192", "task=ssd_coco", "head=ssdlite", "backbone.alpha=0.75")
    two = compose("task=ssd_coco", "backbone.alpha=0.75", "head=ssdlite", "backbone.resolution=192")
    assert one == two
    assert one.data.resolution == one.head.resolution == one.model.head.resolution == 192
    assert one.head.alpha == 0.75
    assert one.head.lite is True


def test_decoding_follows_the_loss():
    assert compose("task=ssd_coco", "loss=multibox_focal").decoder.classification == "focal"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["task=ssd_coco", "backbone.aplha=1"], "no config key 'backbone.aplha'; did you mean backbone.alpha"),
        (["task=ssd_coco", "alpha=1"], "backbone.alpha"),
        (["task=ssd_coco", "trainer.max_epoch=1"], "trainer.max_epochs"),
        (["task=ssd_coc"], "task=ssd_coc: there is no such choice; did you mean ssd_coco"),
        (["task=ssd_coco", "optimizer=adam"], "did you mean adamw"),
        ([], "no task given; add task=NAME, one of classification, face_attributes"),
        (["task=ssd_coco", "backbone.alpha"], "'backbone.alpha' is no override; write key=value"),
        (["task=ssd_coco", "quantize=true"], "quantize=true: a group is chosen by name"),
        (["task=ssd_coco", "data=5"], "data=5: a group is chosen by name"),
    ],
)
def test_wrong_words_get_one_line_with_the_nearest_key(words: list[str], text: str):
    with pytest.raises(UserError) as caught:
        cli.check_overrides("config", words)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_and_their_values_are_no_overrides():
    words = ["task=ssd_coco", "--cfg", "job", "-m", "backbone.alpha=1", "--resolve"]
    assert cli.override_words(words) == ["task=ssd_coco", "backbone.alpha=1"]
    assert cli.flag_words(words) == ["--cfg", "job", "-m", "--resolve"]


def test_a_sweep_is_checked_by_its_first_value():
    cli.check_overrides("config", ["task=ssd_coco,ssdlite_coco", "backbone.alpha=0.25,0.5"])
    with pytest.raises(UserError, match="ssd_voc"):
        cli.check_overrides("config", ["task=ssd_vox,ssd_coco"])


def test_errors_inside_workers_and_constructors_become_one_line():
    worker = UserError(
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "mnvision.errors.UserError: a.jpg is truncated"
    )
    assert cli.message_for_user(worker) == "a.jpg is truncated"
    wrapped = InstantiationException("Error in call to target 'x':\nUserError('alpha is -1')")
    wrapped.__cause__ = UserError("alpha is -1")
    assert cli.message_for_user(wrapped) == "alpha is -1"
    assert cli.message_for_user(RuntimeError("a bug of ours")) is None


def test_later_overrides_replace_stored_ones():
    stored = ["task=ssd_coco", "data=shapes", "data.num_train=10", "backbone.alpha=0.5", "trainer.max_epochs=3"]
    got = cli.merge_overrides(stored, ["data=coco", "backbone.alpha=1"], ["trainer"])
    assert got == ["task=ssd_coco"]
    assert cli.merge_overrides(stored, ["data.num_train=5"], []) == [
        "task=ssd_coco",
        "data=shapes",
        "backbone.alpha=0.5",
        "trainer.max_epochs=3",
    ]


@pytest.mark.parametrize("path", ["runs/a b/x=1.ckpt", "it's.ckpt", "back\\slash.ckpt"])
def test_paths_with_any_characters_survive_the_grammar(path: str):
    cfg = compose("task=ssd_coco", f"ckpt_path={cli.quoted(path)}")
    assert cfg.ckpt_path == path


def test_resume_needs_a_run_folder(tmp_path: Path):
    with pytest.raises(UserError, match="is no run folder"):
        expand_resume([f"resume={tmp_path}"])
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").touch()
    with pytest.raises(UserError, match="is a sweep of runs: give the folder of one"):
        expand_resume([f"resume={tmp_path / 'sweep'}"])
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- task=ssd_coco\n- backbone.alpha=0.5\n")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        expand_resume([f"resume={tmp_path}"])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    words = expand_resume([f"resume={tmp_path}", "trainer.max_epochs=9"])
    assert words[:2] == ["task=ssd_coco", "backbone.alpha=0.5"]
    assert words[-1] == "trainer.max_epochs=9"
    assert f"hydra.run.dir='{tmp_path}'" in words


def run_tool(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / words[0]), *words[1:]], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_exit_code_two_and_no_traceback_for_a_typo(tmp_path: Path):
    done = run_tool("tools/train.py", "task=ssd_coco", "backbone.aplha=0.5", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: there is no config key 'backbone.aplha'; did you mean backbone.alpha or head.alpha?"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "tool",
    [
        "train",
        "evaluate",
        "cost",
        "predict",
        "fit_boxes",
        "compare",
        "verify",
        "embed",
        "cache_teacher",
        "partition",
        "paper",
        "export",
        "prove",
        "merge",
        "same",
    ],
)
def test_help_fits_a_screen_and_shows_an_example(tool: str, tmp_path: Path):
    done = run_tool(f"tools/{tool}.py", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
    assert f"python tools/{tool}.py" in done.stdout


def test_cost_tool_prints_the_papers_numbers(tmp_path: Path):
    done = run_tool("tools/cost.py", "backbone.alpha=0.75", "backbone.resolution=128", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "106,770,432" in done.stdout
    assert "2,585,560" in done.stdout


def test_a_reader_that_leaves_ends_a_tool_quietly(tmp_path: Path):
    words = [sys.executable, str(ROOT / "tools" / "cost.py"), "backbone.resolution=96", "by=layer"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tool:
        assert tool.stdout is not None
        assert tool.stderr is not None
        tool.stdout.close()
        assert tool.stderr.read() == ""
    assert tool.returncode == 141
