"""How long RL Zoo's trainings take: what is measured of each, and what it makes for the whole budget."""

import json

import entries_speed
import pytest
from entries_speed import Pace

RECORD = {"n_rollouts": 62, "first_seconds": 20.0, "rollout_seconds": 1.0, "environment_seconds": 0.5}


@pytest.mark.parametrize("algorithm", entries_speed.ALGORITHMS)
def test_the_rollouts_after_the_second_are_the_pace(algorithm, monkeypatch):
    monkeypatch.setattr(entries_speed, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(entries_speed, "N_ENVIRONMENT_STEPS", 80)
    record = entries_speed.measure(Pace("CartPole-v1", algorithm))
    # RL Zoo's budget of 100,000 steps, 256 to a rollout of either
    assert record["n_rollouts"] == 391
    assert record["versions"]["torch"] and "cores" in record["machine"]
    # The environments alone take a part of what both take, and the first two rollouts more than one
    assert 0 < record["environment_seconds"] < record["rollout_seconds"] < record["first_seconds"]


def test_the_training_ends_after_the_last_rollout_that_is_measured():
    rollouts = entries_speed.Rollouts()
    seconds = entries_speed.MIN_SECONDS
    for begins, goes_on in [([0.0], True), ([0, 9, 10, 11, 12], True), ([0, 9, 10, 10 + seconds], True)]:
        rollouts.begins = begins
        assert rollouts._on_step() is goes_on
    rollouts.begins = [0, 9, 10, 11, 12, 10 + seconds]
    assert rollouts._on_step() is False


def test_the_first_rollouts_count_once():
    assert entries_speed.minutes(RECORD) == pytest.approx((20 + 60) / 60)
    assert entries_speed.environment_minutes(RECORD) == pytest.approx(31 / 60)


def test_each_measurement_is_kept_in_the_order_of_the_table(tmp_path, monkeypatch):
    results = tmp_path / "entries_speed.json"
    monkeypatch.setattr(entries_speed, "RESULTS", results)
    monkeypatch.setattr(entries_speed, "run_in_process", lambda pace, script: {**pace._asdict(), **RECORD})
    entries_speed.run(["Acrobot-v1"])
    entries_speed.run(["Hopper-v5"])
    entries_speed.run(["Hopper-v5"])
    kept = json.loads(results.read_text())["paces"]
    expected = [("Hopper-v5", "r2vpo"), ("Hopper-v5", "ppo"), ("Acrobot-v1", "r2vpo"), ("Acrobot-v1", "ppo")]
    assert [(record["environment"], record["algorithm"]) for record in kept] == expected
    assert "| Hopper-v5 | 1.3 | 1.3 | 1.00 | 0.5 |" in entries_speed.minutes_table(kept)


def test_the_table_is_that_of_the_results():
    paces = json.loads(entries_speed.RESULTS.read_text())["paces"]
    assert entries_speed.minutes_table(paces) in (entries_speed.DOCS / "tuned.md").read_text()
