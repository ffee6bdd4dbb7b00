"""Each of RL Zoo's commands on runs of R2VPO, without a screen and without a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")

from sb3_r2vpo.zoo.cli import COMMANDS, main

RUN = ["train", "--env", "CartPole-v1", "-n", "400", "--eval-freq", "100", "--eval-episodes", "2", "--save-freq", "200"]
FEW_STEPS = ["-params", "n_steps:64", "n_envs:2", "batch_size:64", "n_epochs:1", "normalize:True"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two runs."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        for seed in ("1", "2"):
            monkeypatch.setattr("sys.argv", ["r2vpo", *RUN, "--seed", seed, *FEW_STEPS])
            main()
    return folder


@pytest.fixture
def r2vpo(monkeypatch, tmp_path, trained, capsys):
    def run(*arguments) -> str:
        monkeypatch.setattr("sys.argv", ["r2vpo", *arguments])
        main()
        return capsys.readouterr().out

    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    # What a command sets for its own process
    monkeypatch.setattr("os.environ", os.environ.copy())
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return run


def test_help_has_a_line_for_each_command():
    run = subprocess.run([sys.executable, "-m", "sb3_r2vpo", "--help"], capture_output=True, text=True)
    lines = [line.split()[0] for line in run.stdout.splitlines() if line.startswith("  ")]
    assert set(COMMANDS) <= set(lines), run.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command, r2vpo, monkeypatch, capsys):
    monkeypatch.setattr("matplotlib.pyplot.show", None)
    with pytest.raises(SystemExit) as end:
        r2vpo(command, "--help")
    assert end.value.code == 0 and "show this help message" in capsys.readouterr().out


def test_help_of_train_has_the_arguments_that_rl_zoo_does_not(r2vpo, capsys):
    with pytest.raises(SystemExit):
        r2vpo("train", "--help")
    said = capsys.readouterr().out
    assert all(argument in said for argument in ("--resume [FOLDER]", "--vec-env envpool", "--trainings-per-trial N"))


@pytest.mark.parametrize("command", ["train", "enjoy"])
def test_plotting_is_not_needed_to_train_and_to_watch(command):
    code = """
import sys
for module in ("seaborn", "scipy", "rliable", "plotly"):
    sys.modules[module] = None
from sb3_r2vpo.zoo.cli import main
main()
"""
    run = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and "show this help message" in run.stdout, run.stderr


def test_enjoy_without_a_screen(r2vpo):
    said = r2vpo("enjoy", "--env", "CartPole-v1", "-n", "100", "--load-last-checkpoint")
    assert "There is no screen, so --no-render" in said
    assert "Loading logs/r2vpo/CartPole-v1_2/rl_model_512_steps.zip" in said and "Mean reward:" in said


def test_record_video_without_a_screen(r2vpo, recwarn):
    pytest.importorskip("pygame")
    r2vpo("record_video", "--env", "CartPole-v1", "-n", "10", "--load-best")
    video = Path("logs/r2vpo/CartPole-v1_2/videos/best-model-r2vpo-CartPole-v1-step-0-to-step-10.mp4")
    assert video.read_bytes()[4:8] == b"ftyp"
    assert not [warning for warning in recwarn if "mini-batch" in str(warning.message)]


def test_plots_are_files(r2vpo, monkeypatch):
    pytest.importorskip("rliable")
    from matplotlib import pyplot as plt

    # Put back at the end
    monkeypatch.setattr(plt, "show", plt.show)
    said = r2vpo("plot_train", "-e", "CartPole-v1", "-w", "2")
    said += r2vpo("all_plots", "-e", "CartPole-v1", "-o", "results", "--no-million")
    said += r2vpo("plot_from_file", "-i", "results", "--boxplot", "-iqm")
    pictures = [Path(line.removeprefix("Picture: ")) for line in said.splitlines() if line.startswith("Picture: ")]
    assert [picture.stem for picture in pictures] == [
        "plot_train_Training_Episodic_Reward",
        "all_plots_Results_CartPole-v1",
        "plot_from_file_Results_CartPole-v1",
        "plot_from_file_Sensitivity_plot",
        "plot_from_file_Sensitivity_box_plot",
    ]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)

    with pytest.raises(SystemExit, match="There is nothing to draw"):
        r2vpo("plot_train", "-e", "CartPole-v1", "-w", "1000")
    shutil.rmtree("logs/r2vpo/CartPole-v1_2")
    r2vpo("all_plots", "-e", "CartPole-v1", "-o", "single")
    with pytest.raises(SystemExit, match=r"single\.pkl, with a single run of R2VPO-logs on CartPole-v1"):
        r2vpo("plot_from_file", "-i", "single")


class Hub:
    """The Hugging Face Hub in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def create_repo(self, **kwargs):
        return "https://huggingface.co/me/r2vpo-CartPole-v1"

    def snapshot_download(self, repo_id, local_dir):
        Path(local_dir).mkdir(parents=True)

    def upload_folder(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.folder)

    def download(self, repo_id, filename, **kwargs):
        from huggingface_hub.errors import RemoteEntryNotFoundError

        if not (self.folder / filename).exists():
            raise RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
        return str(self.folder / filename)


def test_share_and_download(r2vpo, monkeypatch, tmp_path):
    import huggingface_hub.repocard
    import huggingface_sb3

    hub = Hub(tmp_path / "remote")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.download)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    # Put back at the end
    monkeypatch.setattr(huggingface_hub.repocard, "metadata_save", huggingface_hub.repocard.metadata_save)
    monkeypatch.setattr(huggingface_sb3, "load_from_hub", huggingface_sb3.load_from_hub)

    r2vpo("push_to_hub", "--env", "CartPole-v1", "-orga", "me", "--no-render")
    card = (hub.folder / "README.md").read_text()
    assert "\nr2vpo load_from_hub --algo r2vpo --env CartPole-v1 -orga me -f logs/" in card
    assert "pip install 'sb3_r2vpo[zoo]'" in card and "python -m rl_zoo3" not in card
    assert "library_name: stable-baselines3" in card and "mean_reward" in card

    download = ["load_from_hub", "--env", "CartPole-v1", "-orga", "me"]
    r2vpo(*download)
    assert Path("logs/r2vpo/CartPole-v1_3/CartPole-v1/vecnormalize.pkl").exists()
    assert "Mean reward:" in r2vpo("enjoy", "--env", "CartPole-v1", "-n", "100")
    # An agent that was trained without
    (hub.folder / "vec_normalize.pkl").unlink()
    assert "No normalization file" in r2vpo(*download)


def test_a_video_that_cannot_be_rendered(r2vpo, monkeypatch):
    monkeypatch.setattr("sb3_r2vpo.zoo.cli.has_screen", lambda: False)
    monkeypatch.setattr("sb3_r2vpo.zoo.screen.find_library", lambda name: None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(SystemExit, match="HalfCheetah-v5 cannot be rendered without a screen here: install EGL"):
        r2vpo("record_video", "--env", "HalfCheetah-v5")
