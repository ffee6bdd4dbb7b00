"""The report of the learning benchmark says what the results hold, however many there are."""

import numpy as np
import pytest
import report
import scores
from protocol import ALGORITHMS, REGIMES, TASKS, Run, configuration
from rliable import metrics
from runs import Record

ENDS = np.arange(1, 6) / 5


def record_of(
    task: str, algorithm: str, seed: int, final: float, regime: str = "small_staggered", fall: float = 0.0
) -> Record:
    """Returns rise along a straight line, the deterministic policy's fall at the seventh of ten points."""
    run = Run(task, regime, algorithm, seed)
    total = REGIMES[regime].total_timesteps
    deterministic = np.linspace(0.1, 1, 10) * final
    deterministic[6] -= fall
    return {
        **run._asdict(),
        "configuration": configuration(run),
        "curve": [(round(end * total), round(end * final, 3)) for end in ENDS],
        "deterministic": deterministic.tolist(),
        "entropy": [8.0, 2.0 + seed],
        "wall_seconds": 120.0,
        "cpu_seconds": 60.0,
    }


#: R2VPO ends at twice PPO's return, and its second seed 100 above the first
FINALS = {"PPO 0.2": 200.0, "PPO 0.3": 300.0, "R2VPO": 600.0}
RECORDS = [
    record_of(task, algorithm, seed, final + 100 * seed, fall=50.0 if algorithm == "PPO 0.2" else 0.0)
    for task in TASKS
    for algorithm, final in FINALS.items()
    for seed in range(2)
]


@pytest.fixture(autouse=True)
def quick_and_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(scores, "REPETITIONS", 20)
    monkeypatch.setattr(report.figures, "IMAGES", tmp_path / "images")


@pytest.fixture
def comparison():
    return scores.compare(RECORDS, "small_staggered")


def test_aggregates(comparison):
    for score in scores.SCORES:
        estimates = scores.aggregates(comparison, score)
        assert {a: e["mean"].value for a, e in estimates.items()} == pytest.approx(
            {a: (final + 50) / 1000 for a, final in FINALS.items()}
        )
        assert estimates["R2VPO"]["IQM"].low <= estimates["R2VPO"]["IQM"].value <= estimates["R2VPO"]["IQM"].high
        assert estimates["R2VPO"]["optimality gap"].value == pytest.approx(0.35)
    assert comparison.peer("training policy") == "PPO 0.3"


def test_improvement_is_rliables(comparison):
    assert scores.improvement(comparison, "R2VPO", "PPO 0.3", "training policy") == (1.0, 1.0, 1.0)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (5, 10)), rng.integers(0, 5, (3, 10))
    assert scores.probability_of_improvement(x, y) == pytest.approx(metrics.probability_of_improvement(x, y))


def test_falls_and_spreads(comparison):
    # From the sixth point to the seventh it would have risen by a tenth
    expected = 50 - 0.1 * np.array([200.0, 300.0])
    np.testing.assert_allclose(scores.deepest_falls(comparison, "PPO 0.2"), np.tile(expected[:, None], len(TASKS)))
    assert scores.deepest_falls(comparison, "R2VPO").max() == 0.0
    np.testing.assert_allclose(scores.spreads(comparison, "R2VPO", "training policy"), 100 / np.sqrt(2))


def test_rows_are_those_of_their_algorithm(comparison):
    assert "| CheetahRun | 250 (200–300) | 350 (300–400) | 650 (600–700) |" in report.task_tables(comparison)
    # 350 of 650 are behind three fifths of the line, 350 of 250 nowhere
    assert "| CheetahRun (350) | never | 100% | 60% |" in report.steps_table(comparison)
    assert "| CheetahRun | 2.5 | +0 | 2.5 | +0 | 2.5 | +0 |" in report.noise_table(comparison)
    assert "| over PPO 0.3, training policy | 1.000 (1.000–1.000) |" in report.improvement_table(comparison)
    lines = report.aggregate_tables(comparison).splitlines()
    assert [line.split(" | ")[3].split(" ")[0] for line in lines[2:5]] == ["0.250", "0.350", "0.650"]
    assert "| PPO 0.2 | 250 | 2.0 | 1.0 |" in report.side_by_side([comparison], "learning")


def test_partial_results():
    """What is not there yet is left out and named: single seeds, tasks, algorithms, regimes."""
    records = [r for r in RECORDS if r["task"] != "WalkerRun"]
    records += [record_of(TASKS[0], "TRPO", 0, 100.0), record_of(TASKS[0], "PPO 0.2", 0, 100.0, regime="large_staggered")]
    records += [{**RECORDS[0], "changes": {"n_epochs": 3}, "curve": []}]
    partial = scores.compare(records, "small_staggered")
    assert partial.tasks == list(TASKS[:-1]) and partial.left_out == ["TRPO"]
    assert {a: len(seeds) for a, seeds in partial.seeds.items()} == {"PPO 0.2": 2, "PPO 0.3": 2, "R2VPO": 2}
    text = report.one_regime(partial)
    assert "not counted: WalkerRun." in text and "have not been run: TRPO." in text
    one_seed = scores.compare([r for r in records if r["seed"] == 0], "small_staggered")
    assert "| R2VPO | 0.600 | 0.600 |" in report.one_regime(one_seed), "one seed has no interval"
    one_less = [r for r in records if not (r["seed"] == 1 and r["algorithm"] == "R2VPO")]
    assert scores.compare(one_less, "small_staggered").left_out == ["TRPO", "R2VPO"]
    assert scores.compare(records, "middle_staggered") is None
    report.one_regime(scores.compare(records, "large_staggered"))


@pytest.fixture
def pages(tmp_path, monkeypatch):
    for name in ("README.md", "learning.md", "learning_in_step.md"):
        (tmp_path / name).write_text("before\n<!-- learning -->\nold\n<!-- /learning -->\nafter\n")
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.setattr(report, "DOCS", tmp_path)
    return tmp_path


def test_report(pages):
    report.write_report(RECORDS)
    text = (pages / "learning.md").read_text()
    assert text.startswith("before\n<!-- learning -->\n##") and text.endswith("<!-- /learning -->\nafter\n")
    pictures = {path.name for path in (pages / "images").iterdir()}
    assert all(f"images/{picture}" in text for picture in pictures) and len(pictures) == 4
    assert "| R2VPO | 0.650" in (pages / "README.md").read_text()
    assert "old" in (pages / "learning_in_step.md").read_text()
    with pytest.raises(SystemExit, match="no results"):
        report.write_report([])


def test_what_is_in_step_is_told_apart(pages):
    in_step = [record_of(task, "R2VPO", 0, 500.0, regime="small") for task in TASKS]
    # What staggering does to R2VPO is not to be mixed up with what quiet rollouts do
    alike = [{**record_of(task, "R2VPO", 0, 550.0), "changes": report.EARLIER_DEFAULTS} for task in TASKS]
    report.write_report([*RECORDS, *in_step, *alike])
    assert "| R2VPO | 0.650" in (pages / "README.md").read_text()
    for page in ("README.md", "learning.md"):
        assert "0.500" not in (pages / page).read_text()
    text = (pages / "learning_in_step.md").read_text()
    assert "| R2VPO | 0.500 |" in text and "## Small updates (64 × 64), in step" in text
    # Returns rise from a fifth of the end: the mean over training is at three fifths
    assert "| R2VPO (10 runs) | 500 | 500 | 300 | 0 | 550 | 550 | 330 | 0 |" in text


def test_what_quiet_rollouts_change_is_told_where_they_change_something(comparison):
    assert report.quiet_rollouts(comparison, RECORDS) == ""
    alike = [{**record_of(task, "R2VPO", 0, 600.0), "changes": report.EARLIER_DEFAULTS} for task in TASKS[1:]]
    alike += [{**record_of(TASKS[0], "R2VPO", 0, 100.0, fall=50.0), "changes": report.EARLIER_DEFAULTS}]
    rows = report.quiet_rollouts(comparison, RECORDS + alike).splitlines()[4:]
    assert rows == [
        "| BallInCupCatch (1 runs) | 100 | 100 | 60 | 40 | 600 | 600 | 360 | 0 |",
        "| all 10 tasks (10 runs) | 550 | 550 | 330 | 4 | 600 | 600 | 360 | 0 |",
    ]


def test_minutes_are_the_cpus_and_cards_are_named():
    on_card = {"seed": 1, "device": "a card", "wall_seconds": 9000.0}
    records = [{**record, **on_card} if record["seed"] == 1 else record for record in RECORDS]
    comparison = scores.compare(records, "small_staggered")
    n_runs = len(TASKS) * len(FINALS)
    assert report.on_cards(comparison) == f"{n_runs} of the {2 * n_runs} runs were trained on a card."
    assert "| R2VPO | 650 | 2.0 | 1.0 |" in report.side_by_side([comparison], "learning")


def test_every_algorithm_has_its_color():
    assert report.figures.COLORS.keys() == ALGORITHMS.keys()


def test_the_last_episode_of_every_environment_counts():
    record = record_of("CheetahRun", "R2VPO", 0, 500.0)
    assert scores.last_episodes(record) == 500.0
    # 64 environments of 1000 steps: staggered, the last 64,000 steps have one end of each
    record["curve"] = [(900_000, 100.0), (950_000, 300.0), (975_000, 400.0), (1_000_000, 500.0)]
    assert scores.last_episodes(record) == pytest.approx(400.0)
    steps, returns = scores.training_curve(record)
    np.testing.assert_array_equal(steps, [900_000, 950_000, 975_000, 1_000_000])
    np.testing.assert_allclose(returns, [100.0, 200.0, 350.0, 400.0])
    assert scores.mean_of_training(record) == pytest.approx(262.5)


def test_the_curve_of_environments_in_step_is_the_recorded_one():
    record = record_of("CheetahRun", "R2VPO", 0, 500.0)
    np.testing.assert_array_equal(np.transpose(scores.training_curve(record)), record["curve"])
