"""Files are whole or not there, damaged ones are named, folders belong to one process."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO

from sb3_r2vpo import R2VPO
from sb3_r2vpo.files import claim_folder, write_file


def test_a_file_is_replaced_as_a_whole(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "folder" / "file")
    for content in (b"old", b"new"):
        write_file(link, content)
        assert (tmp_path / "folder" / "file").read_bytes() == content
    assert link.is_symlink() and [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.zip"
    model = R2VPO("MlpPolicy", "CartPole-v1", n_steps=64)
    model.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=r"model\.zip cannot be written \(No space left on device\): .* unchanged"):
        model.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


FULL_DISK = """
set -e
mount -t tmpfs -o size=1m none {folder}
{python} -c '
import os
from sb3_r2vpo import R2VPO, ResumableCheckpointCallback
model = R2VPO("MlpPolicy", "CartPole-v1", n_steps=64)
model.save("{folder}/model")
before = open("{folder}/model.zip", "rb").read()
open("{folder}/filler", "wb").write(bytes(2**20 - 4096 - len(before) * 3 // 2))
try:
    model.save("{folder}/model")
except OSError as e:
    print("said:", e)
assert open("{folder}/model.zip", "rb").read() == before
R2VPO.load("{folder}/model")

# Two checkpoints have room
os.unlink("{folder}/filler")
os.unlink("{folder}/model.zip")
open("{folder}/filler", "wb").write(bytes(2**20 - 400000))
try:
    with ResumableCheckpointCallback("{folder}", save_freq=64, keep=None) as checkpoints:
        R2VPO("MlpPolicy", "CartPole-v1", n_steps=64).learn(256, checkpoints)
except OSError as e:
    print("ended:", e)
print("newest:", checkpoints.newest())
'
ls {folder}
"""


def test_a_full_disk_leaves_the_old_model(tmp_path):
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True).returncode != 0:
        pytest.skip("needs to mount a disk")
    script = FULL_DISK.format(folder=tmp_path, python=sys.executable)
    run = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "model.zip cannot be written (No space left on device)" in run.stdout
    assert "Training was ended by OSError after 256 timesteps. The model could not be saved" in run.stdout
    assert f"newest: {tmp_path}/rl_model_128_steps.zip" in run.stdout
    assert run.stdout.splitlines()[-3:] == ["filler", "rl_model_128_steps.zip", "rl_model_64_steps.zip"]


def test_names_are_sb3s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = R2VPO("MlpPolicy", "CartPole-v1", n_steps=64)
    for name in ("a", "b.zip", "c.model", Path("new", "d")):
        model.save(name)
        R2VPO.load(name)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "a.zip",
        "b.zip",
        "c.model",
        "new",
        "new/d.zip",
    ]


@pytest.mark.parametrize("size", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("algorithm", [PPO, R2VPO])
def test_a_truncated_model_is_named_and_nothing_of_it_loaded(algorithm, size, tmp_path):
    path = tmp_path / "model.zip"
    algorithm("MlpPolicy", "CartPole-v1", n_steps=64).learn(64).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(size * len(content))])
    model = R2VPO("MlpPolicy", "CartPole-v1", n_steps=64)
    before = model.policy.parameters_to_vector()
    for load in (R2VPO.load, model.set_parameters, lambda path: model.set_parameters(path, exact_match=False)):
        for name in (path, tmp_path / "model"):
            with pytest.raises(ValueError, match=r"model\.zip is damaged"):
                load(name)
    with open(path, "rb") as file, pytest.raises(ValueError, match="The file is damaged"):
        R2VPO.load(file)
    np.testing.assert_array_equal(model.policy.parameters_to_vector(), before)


def test_a_changed_byte_is_found(tmp_path):
    path = tmp_path / "model.zip"
    R2VPO("MlpPolicy", "CartPole-v1", n_steps=64).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.zip is damaged: its entry policy.* cannot be read"):
        R2VPO.load(path)


def test_parameters_that_fit_in_part_change_nothing():
    model = R2VPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0)
    parameters = R2VPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=1).get_parameters()
    parameters["policy"]["value_net.weight"] = parameters["policy"]["value_net.weight"][:, :5]
    before = model.policy.parameters_to_vector()
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.set_parameters(parameters)
    np.testing.assert_array_equal(model.policy.parameters_to_vector(), before)


def test_folders_claimed_at_once_are_different(tmp_path):
    (tmp_path / "run_7").mkdir()
    (tmp_path / "run_8_other").mkdir()
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim_folder(tmp_path, "run"), range(32)))
    assert sorted(int(folder.name.split("_")[1]) for folder in claimed) == list(range(8, 40))
