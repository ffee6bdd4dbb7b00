"""The report of the learning benchmark: tables and pictures from the committed results."""

from collections import Counter
from collections.abc import Iterable, Sequence

import figures
import numpy as np
from protocol import ALGORITHMS, EARLIER_DEFAULTS, IN_STEP, REGIMES, STAGGERED, TASKS_OF, THREE_TASKS
from readme import DOCS, README, replace_in
from runs import Record
from scores import (
    AGGREGATES,
    SCORES,
    Comparison,
    Estimate,
    aggregates,
    compare,
    deepest_fall,
    deepest_falls,
    improvement,
    iqm_curves,
    mean_of_training,
    share_of_steps,
    spreads,
)

#: A task on which PPO ends below has not been learned by it: there is nothing to be reached
LEARNED = 20.0
#: With which the rule for λ was found, in a regime: with small staggered updates that for quiet rollouts too (seed 4), with
#: large ones its smallest λ
SEEDS_OF_THE_RULE = {"small": (0, 1), "small_staggered": (0, 1, 4), "large_staggered": (0, 1, 2)}


def write_report(records: list[Record]) -> None:
    """
    :param records: The results
    :raises SystemExit: When those of the protocol cannot be compared yet
    """
    staggered, in_step = (all_comparisons(records, regimes) for regimes in (STAGGERED, IN_STEP))
    if not staggered:
        raise SystemExit("There are no results that can be compared yet")
    # Three tasks are not ten
    shown = [comparison for comparison in staggered if comparison.tasks != list(THREE_TASKS)] or staggered
    replace_in(README, "learning", summary(shown))
    replace_in(DOCS / "learning.md", "learning", "\n\n".join([side_by_side(shown, "learning"), *sections(staggered, records)]))
    if in_step:
        parts = [
            side_by_side(in_step, "learning_in_step"),
            *staggering(staggered, in_step, records),
            *sections(in_step, records),
        ]
        replace_in(DOCS / "learning_in_step.md", "learning", "\n\n".join(parts))


def all_comparisons(records: list[Record], regimes: Iterable[str]) -> list[Comparison]:
    """
    :param records: The results
    :param regimes: Names of regimes
    :return: What can be compared, regime by regime
    """
    return [found for regime in regimes if (found := compare(records, regime)) is not None]


def sections(comparisons: list[Comparison], records: list[Record]) -> Iterable[str]:
    """
    :param comparisons: The regimes
    :param records: The results
    :return: A part of the report for each, with its pictures
    """
    for comparison in comparisons:
        figures.draw_aggregates(comparison)
        figures.draw_profiles(comparison)
        figures.draw_tasks(comparison)
        yield one_regime(comparison)
        if text := quiet_rollouts(comparison, records):
            yield text
        if used := SEEDS_OF_THE_RULE.get(comparison.regime):
            fresh = compare([record for record in records if record["seed"] not in used], comparison.regime)
            if fresh is not None:
                size = comparison.regime.split("_")[0].capitalize()
                yield f"### {size} updates: only seeds that the rule for λ was not found with\n\n{aggregate_tables(fresh)}"


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


def side_by_side(comparisons: list[Comparison], picture: str) -> str:
    """
    :param comparisons: The regimes
    :param picture: Name of their picture
    :return: Returns and times side by side
    """
    figures.draw_headline(comparisons, picture)
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
    columns = [f"{c.regime.removesuffix('_staggered')}: {what}" for c in comparisons for what in whats]
    return "\n\n".join(
        [
            "## The regimes side by side",
            f"![Sample efficiency](images/{picture}.png)",
            table("training policy at the end", columns, [(algorithm, list(cells(algorithm))) for algorithm in shown]),
            "Minutes are medians over runs on the CPU, without evaluations, on cores that had other work to do: an\n"
            "indication, not a measurement of speed. PPO and SPO go through R2VPO's compiled gradient step, TRPO is\n"
            "sb3-contrib's own code.",
        ]
    )


def pairs_table(hows: tuple[str, str], pairs: Iterable[tuple[str, list[tuple[Record, Record]]]]) -> str:
    """
    :param hows: How the first and the second of a pair were run
    :param pairs: By what each row is of, records of the same task and seed
    :return: Means of both, empty without pairs
    """
    scores = {**SCORES, "mean over training": mean_of_training, "deepest fall": deepest_fall}
    columns = [f"{how}: {score}" for how in hows for score in scores]
    rows = [
        (
            f"{name} ({len(of)} runs)",
            [f"{np.mean([score(p[k]) for p in of]):.0f}" for k in (0, 1) for score in scores.values()],
        )
        for name, of in pairs
        if of
    ]
    return table("mean return", columns, rows) if rows else ""


def without_quiet(records: list[Record], regime: str) -> dict[tuple[str, str, int], Record]:
    """
    :param records: All results
    :param regime: Name of a regime
    :return: Its runs of R2VPO with the defaults of before there were quiet rollouts, by algorithm, task and seed
    """
    alike = [r for r in records if r["regime"] == regime and r["algorithm"] == "R2VPO" and r["changes"] == EARLIER_DEFAULTS]
    return {(r["algorithm"], r["task"], r["seed"]): r for r in alike}


def staggering(staggered: list[Comparison], in_step: list[Comparison], records: list[Record]) -> Iterable[str]:
    """
    :param staggered: The regimes with staggered environments
    :param in_step: Those without, where R2VPO makes no difference between rollouts
    :param records: All results
    :return: For each that there is both ways: the same tasks and seeds without and with
    """
    for c in staggered:
        before = next((other.records for other in in_step if f"{other.regime}_staggered" == c.regime), {})
        after = {run: r for run, r in c.records.items() if run[0] != "R2VPO"} | without_quiet(records, c.regime)
        pairs = {a: [(before[run], r) for run, r in after.items() if run[0] == a and run in before] for a in c.seeds}
        text = pairs_table(("in step", "staggered"), pairs.items())
        if text:
            yield f"### What staggering does: {figures.LABELS[c.regime]}\n\n{text}"


def quiet_rollouts(c: Comparison, records: list[Record]) -> str:
    """
    :param c: The runs of a regime
    :param records: All results
    :return: What it does to R2VPO to know quiet rollouts, on the same tasks and seeds: those tasks that it changes
    """
    pairs = [(r, c.records[run]) for run, r in without_quiet(records, c.regime).items() if run in c.records]
    by_task = {task: [pair for pair in pairs if pair[0]["task"] == task] for task in c.tasks}
    changed = {task: of for task, of in by_task.items() if any(r["curve"] != now["curve"] for r, now in of)}
    text = pairs_table(("all rollouts alike", "R2VPO"), [*changed.items(), (f"all {len(by_task)} tasks", pairs)])
    return f"### What it does to know quiet rollouts\n\n{text}" if text else ""


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
        f"Left out, for tasks or seeds that have not been run: {', '.join(c.left_out)}." if c.left_out else "",
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
