"""The report of the learning benchmark: tables and pictures from the committed results."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import figures
import numpy as np
from protocol import ALGORITHMS, REGIMES, TASKS_OF
from readme import README, replace_in
from runs import Record
from scores import (
    AGGREGATES,
    SCORES,
    Comparison,
    Estimate,
    aggregates,
    compare,
    deepest_falls,
    improvement,
    iqm_curves,
    mean_of_training,
    share_of_steps,
    spreads,
)

REPORT = Path(__file__).parent.parent / "docs" / "learning.md"
#: A task on which PPO ends below has not been learned by it: there is nothing to be reached
LEARNED = 20.0
#: Staggered environments first, then from few huge updates to many small ones
ORDER = ("large_staggered", "small_staggered", "large", "middle", "small")
#: With which the rule for λ was found, in the small regime
SEEDS_OF_THE_RULE = (0, 1)


def write_report(records: list[Record]) -> None:
    """
    :param records: The results
    """
    comparisons = [found for regime in ORDER if (found := compare(records, regime)) is not None]
    if not comparisons:
        raise SystemExit("There are no results that can be compared yet")
    figures.draw_headline([comparison for comparison in comparisons if comparison.regime != "middle"] or comparisons)
    for comparison in comparisons:
        figures.draw_aggregates(comparison)
        figures.draw_profiles(comparison)
        figures.draw_tasks(comparison)
    parts = [both_regimes(comparisons), *staggering(comparisons), *(one_regime(comparison) for comparison in comparisons)]
    fresh = compare([record for record in records if record["seed"] not in SEEDS_OF_THE_RULE], "small")
    if fresh is not None:
        parts += ["### Only seeds that the rule for λ was not found with", aggregate_tables(fresh)]
    replace_in(REPORT, "learning", "\n\n".join(parts))
    replace_in(README, "learning", summary(comparisons))


def table(corner: str, columns: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """
    :param corner: Head of the first column
    :param columns: Heads of the others
    :param rows: Head and cells of each row
    :return: A Markdown table
    """
    lines = [[corner, *columns]]
    lines.append(["---"] * len(lines[0]))
    lines += [[head, *cells] for head, cells in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_interval(estimate: Estimate, n_seeds: int) -> str:
    """
    :param estimate: A value and its interval
    :param n_seeds: Of how many seeds; one has no interval
    :return: A cell
    """
    value, low, high = estimate
    return f"{value:.3f}" if n_seeds < 2 else f"{value:.3f} ({low:.3f}–{high:.3f})"


def percent(share: float | None) -> str:
    """
    :param share: Of the steps, ``None`` when never
    :return: A cell
    """
    return "never" if share is None else f"{share:.0%}"


def summary(comparisons: list[Comparison]) -> str:
    """
    :param comparisons: The regimes
    :return: The short table of the README
    """
    shown = [algorithm for algorithm in ALGORITHMS if any(algorithm in c.seeds for c in comparisons)]
    estimates = [aggregates(comparison, "training policy") for comparison in comparisons]

    def cells(algorithm: str) -> Iterable[str]:
        for comparison, by_algorithm in zip(comparisons, estimates, strict=True):
            if algorithm not in by_algorithm:
                yield "–"
                continue
            yield with_interval(by_algorithm[algorithm]["IQM"], len(comparison.seeds[algorithm]))

    columns = [f"{figures.LABELS[c.regime]}, {len(c.tasks)} tasks" for c in comparisons]
    return table(
        "IQM of returns / 1000 (95 % interval)", columns, [(algorithm, list(cells(algorithm))) for algorithm in shown]
    )


def both_regimes(comparisons: list[Comparison]) -> str:
    """
    :param comparisons: The regimes
    :return: Returns and times side by side
    """
    shown = [algorithm for algorithm in ALGORITHMS if any(algorithm in c.seeds for c in comparisons)]

    def cells(algorithm: str) -> Iterable[str]:
        for c in comparisons:
            if algorithm not in c.seeds:
                yield from ("–",) * 3
                continue
            yield f"{c.final(algorithm, 'training policy').mean():.0f}"
            records = [record for (a, *_), record in c.records.items() if a == algorithm and device_of(record) == "cpu"]
            for clock in ("wall_seconds", "cpu_seconds"):
                yield f"{np.median([record[clock] for record in records]) / 60:.1f}" if records else "–"

    whats = ("mean return", "minutes", "CPU minutes")
    columns = [f"{c.regime.replace('_', ' ')}: {what}" for c in comparisons for what in whats]
    return "\n\n".join(
        [
            "## The regimes side by side",
            "![Sample efficiency](images/learning.png)",
            table("training policy at the end", columns, [(algorithm, list(cells(algorithm))) for algorithm in shown]),
            "Minutes are medians over runs on the CPU, without evaluations, on cores that had other work to do: an\n"
            "indication, not a measurement of speed. PPO and SPO go through R2VPO's compiled gradient step, TRPO is\n"
            "sb3-contrib's own code.",
        ]
    )


def staggering(comparisons: list[Comparison]) -> Iterable[str]:
    """
    :param comparisons: The regimes
    :return: For each that there is with staggered environments too: the same tasks and seeds without and with that
    """
    by_regime = {c.regime: c for c in comparisons}
    scores = {**SCORES, "mean over training": mean_of_training}
    for regime, staggered in by_regime.items():
        in_step = by_regime.get(regime.removesuffix("_staggered"))
        if in_step is None or in_step is staggered:
            continue
        rows = []
        for algorithm in staggered.seeds:
            pairs = [(in_step.records[run], record) for run, record in staggered.records.items() if run in in_step.records]
            pairs = [pair for pair in pairs if pair[0]["algorithm"] == algorithm]
            n_seeds = len({record["seed"] for record, _ in pairs})
            means = [f"{np.mean([score(p[k]) for p in pairs]):.0f}" for k in (0, 1) for score in scores.values()]
            rows += [(f"{algorithm}, {n_seeds} seeds", means)] if pairs else []
        if rows:
            columns = [f"{how}: {score}" for how in ("in step", "staggered") for score in scores]
            yield f"### What staggering does: {figures.LABELS[in_step.regime]}"
            yield table("mean return", columns, rows)


def device_of(record: Record) -> str:
    """
    :param record: A record
    :return: What it was trained on. Records from before there was a choice do not say
    """
    return record.get("device", "cpu")


def on_cards(c: Comparison) -> str:
    """
    :param c: The runs of a regime
    :return: How many of them were trained on which card, empty if none was
    """
    cards = Counter(device for record in c.records.values() if (device := device_of(record)) != "cpu")
    return " ".join(f"{n} of the {len(c.records)} runs were trained on {card}." for card, n in cards.items())


def one_regime(c: Comparison) -> str:
    """
    :param c: The runs of a regime
    :return: Its part of the report
    """
    name = figures.LABELS[c.regime]
    missing = [task for task in TASKS_OF[c.regime] if task not in c.tasks]
    notes = [
        f"Seeds: {', '.join(f'{algorithm} {len(seeds)}' for algorithm, seeds in c.seeds.items())}. {len(c.tasks)} tasks.",
        f"Without results yet, and not counted: {', '.join(missing)}." if missing else "",
        f"Left out, as not all tasks have been run: {', '.join(c.left_out)}." if c.left_out else "",
        on_cards(c),
    ]
    parts = [f"## {name[0].upper()}{name[1:]}", " ".join(note for note in notes if note)]
    parts += [f"### Aggregates\n\n![Aggregates](images/learning_{c.regime}_aggregates.png)", aggregate_tables(c)]
    parts += [f"![Performance profiles](images/learning_{c.regime}_profiles.png)", improvement_table(c)]
    parts += ["### Task by task", f"![Learning curves](images/learning_{c.regime}_tasks.png)", task_tables(c)]
    parts += ["### Exploration noise at the end", noise_table(c)]
    parts += ["### Steps to PPO's final return", steps_table(c)]
    parts += ["### Spread between seeds, and falls", stability_table(c)]
    return "\n\n".join(part for part in parts if part)


def aggregate_tables(c: Comparison) -> str:
    """
    :param c: The runs of a regime
    :return: A table for each score
    """
    tables = []
    for score in SCORES:
        estimates = aggregates(c, score)
        rows = [
            (algorithm, [with_interval(estimates[algorithm][name], len(seeds)) for name in AGGREGATES])
            for algorithm, seeds in c.seeds.items()
        ]
        tables.append(table(score, AGGREGATES, rows))
    return "\n\n".join(tables)


def improvement_table(c: Comparison) -> str:
    """
    :param c: The runs of a regime
    :return: How probable it is that a run of R2VPO is better than one of PPO or SPO
    """
    ours = [algorithm for algorithm in c.seeds if algorithm.startswith("R2VPO")]
    rows = []
    for score in SCORES:
        for other in (c.peer(score), c.peer(score, "SPO")):
            if other is None:
                continue
            fewest = min(len(c.seeds[algorithm]) for algorithm in [*ours, other])
            cells = [with_interval(improvement(c, algorithm, other, score), fewest) for algorithm in ours]
            rows.append((f"over {other}, {score}", cells))
    return table("probability of improvement", ours, rows) if ours and rows else ""


def task_tables(c: Comparison) -> str:
    """
    :param c: The runs of a regime
    :return: For each score the final returns, mean and range of the seeds
    """

    def cell(values: np.ndarray) -> str:
        return f"{values.mean():.0f}" if len(values) < 2 else f"{values.mean():.0f} ({values.min():.0f}–{values.max():.0f})"

    return "\n\n".join(
        table(
            f"{score}, mean (range of seeds)",
            c.seeds,
            [(task, [cell(c.final(a, score)[:, i]) for a in c.seeds]) for i, task in enumerate(c.tasks)],
        )
        for score in SCORES
    )


def noise_table(c: Comparison) -> str:
    """
    :param c: The runs of a regime
    :return: Entropy of the policy at the end, and what its noise takes from the return
    """

    def cells(algorithm: str, i: int) -> Iterable[str]:
        training, deterministic = (c.final(algorithm, score)[:, i].mean() for score in SCORES)
        yield f"{c.values(algorithm, lambda record: record['entropy'][-1])[:, i].mean():.1f}"
        yield f"{deterministic - training:+.0f}"

    columns = [f"{algorithm}: {what}" for algorithm in c.seeds for what in ("entropy", "without noise")]
    rows = [(task, [cell for a in c.seeds for cell in cells(a, i)]) for i, task in enumerate(c.tasks)]
    return table("nats; return of the deterministic policy less that of the training policy", columns, rows)


def steps_table(c: Comparison) -> str:
    """
    :param c: The runs of a regime
    :return: Share of the budget after which the mean curve is for the first time where PPO's ends
    """
    peer = c.peer("training policy")
    if peer is None:
        return "There is no PPO to compare with yet."
    total = REGIMES[c.regime].total_timesteps
    by_task = {algorithm: c.curve(algorithm).mean(axis=0) for algorithm in c.seeds}
    rows = []
    for i, task in enumerate(c.tasks):
        target = by_task[peer][i, -1]
        shares = [percent(share_of_steps(c, curves[i], target, total)) for curves in by_task.values()]
        rows.append((f"{task} ({target:.0f})", shares if target >= LEARNED else ["–"] * len(shares)))
    overall = iqm_curves(c)
    target = overall[peer].value[-1]
    shares = [percent(share_of_steps(c, overall[algorithm].value, target, total)) for algorithm in c.seeds]
    rows.append((f"**IQM** ({target:.3f})", shares))
    return table(f"share of the steps to where {peer} ends", c.seeds, rows)


def stability_table(c: Comparison) -> str:
    """
    :param c: The runs of a regime
    :return: How much runs differ, and how much they lose again
    """

    def deviation(algorithm: str, score: str) -> str:
        return f"{spreads(c, algorithm, score).mean():.0f}" if len(c.seeds[algorithm]) > 1 else "–"

    falls = {algorithm: deepest_falls(c, algorithm) for algorithm in c.seeds}
    rows = [
        *((f"standard deviation between seeds, {score}", [deviation(a, score) for a in c.seeds]) for score in SCORES),
        ("deepest fall of the deterministic policy, mean over runs", [f"{fall.mean():.0f}" for fall in falls.values()]),
        ("the deepest of all", [f"{fall.max():.0f}" for fall in falls.values()]),
        ("share of runs that fell by more than 100", [f"{(fall > 100).mean():.0%}" for fall in falls.values()]),
    ]
    return table("returns are in [0, 1000]", c.seeds, rows)
