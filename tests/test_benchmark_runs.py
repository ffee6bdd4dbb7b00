"""The benchmark's runs: resumed, appended in one piece, named when they fail."""

import json
import subprocess
import sys

import pytest
import runs
from protocol import ALGORITHMS, Run, arguments_of, configuration
from training import learning_curve, thinned

from sb3_r2vpo import quiet

RUNS = [Run("CheetahRun", "small", algorithm, seed) for seed in (0, 1) for algorithm in ("PPO 0.2", "R2VPO")]


def record_of(run, **kwargs):
    return {**run._asdict(), "configuration": configuration(run), "deterministic": [1.0], "wall_seconds": 1.0, **kwargs}


def test_only_what_is_missing_is_run(tmp_path, monkeypatch):
    results, asked = tmp_path / "results.jsonl", []
    monkeypatch.setattr(runs, "run_in_process", lambda run, script, device: asked.append(run) or record_of(run))
    runs.append(results, record_of(RUNS[1]))
    runs.run_missing(RUNS, results, n_jobs=1)
    assert asked == [RUNS[0], *RUNS[2:]]
    assert len(runs.load(results)) == len(RUNS)
    runs.run_missing(RUNS, results, n_jobs=1)
    assert len(asked) == len(RUNS) - 1


def test_what_cannot_be_appended_ends_the_others(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(runs, "run_in_process", lambda run, script, device: started.append(run) or {"not JSON": object()})
    with pytest.raises(TypeError):
        runs.run_side_by_side(RUNS * 10, [1.0] * 40, tmp_path / "results.jsonl", 1, "training.py")
    assert len(started) < 40


def test_a_run_with_other_arguments_is_another(tmp_path, monkeypatch):
    results, asked = tmp_path / "results.jsonl", []
    monkeypatch.setattr(runs, "run_in_process", lambda run, script, device: asked.append(run) or record_of(run))
    changed = RUNS[1]._replace(changes={"var_coef": 3.0})
    runs.append(results, record_of(RUNS[1]))
    runs.run_missing([RUNS[1], changed], results, n_jobs=1)
    assert asked == [changed] and arguments_of(changed)["var_coef"] == configuration(changed)["var_coef"] == 3.0


def test_in_step_is_run_as_it_was():
    """Before environments were staggered and rollouts could be quiet."""
    for regime, alike in (("small", True), ("small_staggered", False)):
        found = configuration(Run("CheetahRun", regime, "R2VPO", 0))
        assert (found["quiet_scale"] == 1.0) == (found["var_coef_bounds"][0] == 0.05) == ("stagger" not in found) == alike
        assert (quiet.QUIET in found["rule"]) != alike
    changed = configuration(Run("CheetahRun", "small_staggered", "R2VPO", 0, {"quiet_scale": 1.0}))
    assert changed["quiet_scale"] == 1.0 and quiet.QUIET not in changed["rule"]


@pytest.mark.parametrize("argument, counts", [("n_epochs", False), ("an_argument_of_another_day", True)])
def test_results_of_another_configuration_do_not_count(tmp_path, capsys, argument, counts):
    record = record_of(RUNS[0])
    record["configuration"] = {**record["configuration"], argument: 3}
    runs.append(tmp_path / "results.jsonl", record)
    assert len(runs.load(tmp_path / "results.jsonl")) == counts
    assert ("1 runs with an earlier configuration" in capsys.readouterr().err) != counts


def test_the_defaults_are_part_of_the_configuration_of_the_algorithm_that_has_them():
    assert "var_coef" in configuration(RUNS[1])
    assert not {"var_coef", "target_var"} & configuration(RUNS[0]).keys()
    assert ALGORITHMS["R2VPO"].arguments == {}
    assert arguments_of(RUNS[1])["learning_rate"] == arguments_of(RUNS[0])["learning_rate"]


def test_a_killed_run_leaves_nothing_and_is_named(tmp_path, monkeypatch):
    results, popen = tmp_path / "results.jsonl", subprocess.run

    def killed_if_ppo(command, **kwargs):
        run = Run(**json.loads(command[2]))
        print_record = f"import json; print(json.dumps({record_of(run)!r}))"
        kill = "import os, signal; print('{}'); os.kill(os.getpid(), signal.SIGKILL)"
        return popen([sys.executable, "-c", kill if run.algorithm.startswith("PPO") else print_record], **kwargs)

    monkeypatch.setattr(subprocess, "run", killed_if_ppo)
    with pytest.raises(SystemExit, match=r"1 of 2 failed: CheetahRun small PPO 0\.2 seed 0"):
        runs.run_missing(RUNS[:2], results, n_jobs=2)
    assert [record["algorithm"] for record in runs.load(results)] == ["R2VPO"]


def test_learning_curve():
    # Two episodes at once in the first tenth, one beyond the end
    assert learning_curve([(100, 1.0), (100, 2.0), (1010, 7.12345)], 1000) == [(100, 1.5), (1010, 7.123)]
    assert learning_curve([], 1000) == []


def test_thinned():
    assert thinned([1.0, 2.0]) == [1.0, 2.0]
    assert thinned([float(i // 2) for i in range(120)]) == [float(i) for i in range(60)]
    assert thinned([float("nan"), 1.0]) == [None, 1.0]
