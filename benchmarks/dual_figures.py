"""Tables and pictures of the study of the dual variable."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from figures import COLORS, LINES, save
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from probe import ADVANTAGES, DISTANCES, LOG_RATIOS
from readme import DOCS, replace_in
from report import percent, table
from runs import Record
from scores import SCORES

REPORT = DOCS / "dual_dynamics.md"
#: Rollouts of 256 steps go through an episode of 1000 in four
LAGS = (1, 2, 4)
#: The regimes in which a point of the series is one update, and how they are told apart
UPDATE_BY_UPDATE = {"large": "in step", "large_staggered": "staggered"}
Knobs = dict[str, tuple[str, tuple[float, ...]]]
#: What a start of λ is followed in: series of the record, its label, and whether its axis is logarithmic
FOLLOWED = (
    ("var_coef", "λ", True),
    ("ratio_variance_last_epoch", "V, last epoch", True),
    ("signal", "signal", False),
    ("entropy", "entropy", False),
)


def write_report(records: list[Record], probed: list[Record], knobs: Knobs, trained: Sequence[Record] = ()) -> None:
    """
    What has results is written anew, the rest stays as it is.

    :param records: Results of starts and knobs
    :param probed: Results of the probe
    :param knobs: Each algorithm's own knob, and its values
    :param trained: Results of the learning benchmark
    """
    large = [r for r in trained if r["algorithm"] == "R2VPO" and r["regime"] in UPDATE_BY_UPDATE and not r["changes"]]
    started = [r for r in records if list(r["changes"]) == ["var_coef"] and isinstance(r["changes"]["var_coef"], str)]
    turned = [r for r in records if r not in started and len(r["changes"]) == 1]
    probed = [record for record in probed if not record["changes"]]
    if started:
        draw_starts(started)
        text = ["![λ, V, signal and entropy from several starts](images/dual_starts.png)", start_table(started)]
        replace_in(REPORT, "starts", "\n\n".join(text))
    if large:
        replace_in(REPORT, "held", held_table(large))
    if turned:
        draw_knobs(turned, knobs)
        replace_in(REPORT, "knobs", "![Return over each knob](images/dual_knobs.png)\n\n" + knob_table(turned, knobs))
    if probed:
        draw_ratios(probed)
        draw_kept(probed)
        pictures = ["![Ratio by epoch](images/dual_ratios.png)", "![Gradient kept](images/dual_kept.png)"]
        replace_in(REPORT, "ratios", "\n\n".join([*pictures, ratio_table(probed)]))


def places(records: list[Record]) -> list[tuple[str, str]]:
    """
    :param records: Results
    :return: The regimes and tasks that they have
    """
    return sorted({(record["regime"], record["task"]) for record in records})


def at(records: list[Record], place: tuple[str, str]) -> list[Record]:
    """
    :param records: Results
    :param place: Regime and task
    :return: Its records
    """
    return [record for record in records if (record["regime"], record["task"]) == place]


def series(record: Record, name: str) -> np.ndarray:
    """
    :param record: A record
    :param name: One of its series
    :return: Its values over training, NaN where there is none
    """
    return np.array(record.get(name, []), dtype=float)


def draw_starts(records: list[Record]) -> None:
    """
    :param records: Results with λ learned from several starts
    """
    followed = [what for what in FOLLOWED if any(what[0] in record for record in records)]
    figure = Figure(figsize=(3 * len(places(records)), 0.6 + 1.9 * len(followed)), layout="constrained")
    axes = figure.subplots(len(followed), len(places(records)), sharex=True, squeeze=False)
    starts = sorted({record["changes"]["var_coef"] for record in records}, key=start_of)
    for column, place in zip(axes.T, places(records), strict=True):
        column[0].set_title(f"{place[1]}, {place[0]}", fontsize="medium")
        for ax, (name, label, logarithmic) in zip(column, followed, strict=True):
            for record in at(records, place):
                values, start = series(record, name), record["changes"]["var_coef"]
                shade = 0.15 + 0.7 * starts.index(start) / max(1, len(starts) - 1)
                ax.plot(
                    np.linspace(0, 1, len(values)), values, color=(shade, 0.35, 1 - shade), label=f"from {start_of(start):g}"
                )
            if name.startswith("ratio_variance"):
                bound = np.mean([bound_of(record, len(series(record, name))) for record in at(records, place)], axis=0)
                ax.plot(np.linspace(0, 1, len(bound)), bound, color="k", linestyle=":", label="δ")
            if logarithmic:
                ax.set_yscale("log")
                ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter(NullFormatter())
            ax.grid(alpha=0.3)
            if ax in axes[:, 0]:
                ax.set_ylabel(label)
    handles = dict(zip(*reversed(axes[1, 0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    figure.supxlabel("share of training", fontsize="medium")
    save(figure, "dual_starts")


def start_of(var_coef: str) -> float:
    """
    :param var_coef: ``auto_2.0``
    :return: The number in it
    """
    return float(var_coef.removeprefix("auto_"))


def bound_of(record: Record, length: int) -> np.ndarray:
    """
    :param record: A record with a learned λ
    :param length: Of its series
    :return: δ over training: as logged where it moves, else the argument
    """
    logged = series(record, "target_var")
    return logged if len(logged) else np.full(length, record["configuration"]["target_var"])


def start_table(records: list[Record]) -> str:
    """
    :param records: Results with λ learned from several starts
    :return: How soon the constraint holds, how it is violated, how much λ swings
    """
    rows = []
    for record in sorted(records, key=lambda r: (r["regime"], r["task"], r["seed"], start_of(r["changes"]["var_coef"]))):
        variance, var_coef = series(record, "ratio_variance_last_epoch"), series(record, "var_coef")
        violation = variance / bound_of(record, len(variance)) - 1
        head = f"{record['regime']} {record['task']} seed {record['seed']} from {start_of(record['changes']['var_coef']):g}"
        soon, beyond, swing = feasible_from(violation), np.maximum(violation, 0).mean(), swing_of(var_coef)
        final = SCORES["training policy"](record)
        rows.append((head, [f"{var_coef[-1]:.2g}", percent(soon), f"{beyond:.2f}", f"{swing:.0%}", f"{final:.0f}"]))
    columns = ["λ at the end", "feasible after", "mean violation (V/δ − 1)₊", "swing of λ", "return, training policy"]
    return table("run", columns, rows)


def feasible_from(violation: np.ndarray) -> float | None:
    """
    :param violation: V/δ − 1 over training
    :return: Share of training after which the constraint holds for the first time within a tenth, ``None`` if it never does
    """
    feasible = np.flatnonzero(violation <= 0.1)
    return feasible[0] / len(violation) if len(feasible) else None


def swing_of(var_coef: np.ndarray) -> float:
    """
    Oscillation: what λ moves from point to point beyond what it moves on the whole.

    :param var_coef: λ over training
    :return: Mean change of λ per point in the last three quarters of training, as a factor minus one, the trend taken off
    """
    changes = np.diff(np.log(var_coef[len(var_coef) // 4 :]))
    return float(np.expm1(np.abs(changes - changes.mean()).mean())) if len(changes) else 0.0


def held_table(records: list[Record]) -> str:
    """
    :param records: Results with a learned λ, one point of a series for each update
    :return: How well the bound is held from update to update
    """
    rows = []
    for regime, task in sorted(places(records), key=lambda place: (place[1], place[0])):
        runs = at(records, (regime, task))
        shares = [series(r, "ratio_variance_last_epoch") / bound_of(r, len(r["var_coef"])) for r in runs]
        settled = [share[len(share) // 8 :] for share in shares]
        mean, beyond = (np.mean([measure(share) for share in settled]) for measure in (np.mean, above))
        largest = max(share.max() for share in settled)
        later = [np.mean([correlation_with_later(np.log(share), lag) for share in settled]) for lag in LAGS]
        cells = [f"{mean:.2f}", percent(beyond), f"{largest:.1f}", *(f"{value:+.2f}" for value in later)]
        rows.append((f"{task}, {UPDATE_BY_UPDATE[regime]} ({len(runs)} seeds)", cells))
    lags = [f"with that {lag} later" if lag > 1 else "correlation of log V/δ with the next" for lag in LAGS]
    return table("V/δ in the last epoch of an update", ["mean", "above 1.5", "largest", *lags], rows)


def above(shares: np.ndarray) -> float:
    """
    :param shares: V/δ of each update
    :return: Share of the updates that go beyond the bound by half and more
    """
    return float((shares > 1.5).mean())


def correlation_with_later(values: np.ndarray, lag: int) -> float:
    """
    :param values: One for each update
    :param lag: By how many updates
    :return: Autocorrelation
    """
    deviations = values - values.mean()
    return float((deviations[lag:] * deviations[:-lag]).mean() / deviations.var())


def without_value(algorithm: str) -> str:
    """
    :param algorithm: Name of an algorithm, which may end with the value of its knob
    :return: The name without it
    """
    return algorithm.rstrip(" .0123456789")


def mean_by_value(records: list[Record], algorithm: str, knob: str, score: str) -> dict[float, float]:
    """
    :param records: Results of knobs, of one regime and task
    :param algorithm: Name of the algorithm
    :param knob: Its argument
    :param score: One of the ``SCORES``
    :return: Mean over seeds by value of the knob
    """
    here = [record for record in records if record["algorithm"] == algorithm and knob in record["changes"]]
    values = sorted({record["changes"][knob] for record in here})
    return {v: float(np.mean([SCORES[score](record) for record in here if record["changes"][knob] == v])) for v in values}


def draw_knobs(records: list[Record], knobs: Knobs) -> None:
    """
    :param records: Results of knobs
    :param knobs: Each algorithm's own knob, and its values
    """
    present = [algorithm for algorithm in knobs if any(record["algorithm"] == algorithm for record in records)]
    figure = Figure(figsize=(2.6 * len(present), 0.6 + 2.2 * len(places(records))), layout="constrained")
    axes = figure.subplots(len(places(records)), len(present), sharey="row", sharex="col", squeeze=False)
    for row, place in zip(axes, places(records), strict=True):
        row[0].set_ylabel(f"{place[1]}\n{place[0].replace('_', ' ')}")
        for ax, algorithm in zip(row, present, strict=True):
            for score, line in zip(SCORES, ("-", ":"), strict=True):
                means = mean_by_value(at(records, place), algorithm, knobs[algorithm][0], score)
                ax.plot(list(means), list(means.values()), line, marker="o", color=COLORS[algorithm], label=score)
            ax.set_xscale("log")
            ax.minorticks_off()
            ax.set_xticks(knobs[algorithm][1], [f"{value:g}" for value in knobs[algorithm][1]], fontsize="small", rotation=90)
            ax.grid(alpha=0.3)
        row[0].set_ylim(0, None)
    for ax, algorithm in zip(axes[0], present, strict=True):
        ax.set_title(f"{without_value(algorithm)}: {knobs[algorithm][0]}", fontsize="medium")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    save(figure, "dual_knobs")


def knob_table(records: list[Record], knobs: Knobs) -> str:
    """
    :param records: Results of knobs
    :param knobs: Each algorithm's own knob, and its values
    :return: Return of the training policy at each value
    """
    rows = []
    for algorithm, (knob, values) in knobs.items():
        by_place = {place: mean_by_value(at(records, place), algorithm, knob, "training policy") for place in places(records)}
        for value in values:
            returns = [by_place[place].get(value) for place in by_place]
            if any(r is not None for r in returns):
                cells = ["–" if r is None else f"{r:.0f}" for r in returns]
                rows.append((f"{without_value(algorithm)}, {knob} {value:g}", cells))
    columns = [f"{task}, {regime.replace('_', ' ')}" for regime, task in places(records)]
    return table("return of the training policy", columns, rows)


def draw_ratios(records: list[Record]) -> None:
    """
    Distribution of log ρ after the first, the middle and the last epoch.

    :param records: Results of the probe
    """
    figure = Figure(figsize=(3.2 * len(places(records)), 6.5), layout="constrained")
    axes = figure.subplots(3, len(places(records)), sharex=True, sharey=True, squeeze=False)
    for column, place in zip(axes.T, places(records), strict=True):
        column[0].set_title(f"{place[1]}, {place[0]}", fontsize="medium")
        for record in at(records, place):
            ratios, algorithm = np.array(record["ratios"], dtype=float), record["algorithm"]
            for ax, epoch in zip(column, epochs_shown(ratios), strict=True):
                style: dict[str, Any] = dict(color=COLORS[algorithm], linestyle=LINES.get(algorithm, "-"))
                label = algorithm if record["seed"] == 0 else None
                ax.stairs(ratios[epoch - 1], LOG_RATIOS, linewidth=1.5, label=label, **style)
                ax.set_yscale("log")
                ax.grid(alpha=0.3)
                if ax in axes[:, 0]:
                    ax.set_ylabel(f"share of samples,\nepoch {epoch}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLORS))
    figure.supxlabel("log ρ", fontsize="medium")
    save(figure, "dual_ratios")


def epochs_shown(ratios: np.ndarray) -> tuple[int, int, int]:
    """
    :param ratios: One row for each epoch
    :return: The first, the middle and the last
    """
    return 1, (1 + len(ratios)) // 2, len(ratios)


def draw_kept(records: list[Record]) -> None:
    """
    Share of its policy gradient that a sample keeps at the end of an update, by advantage and by the way it has gone.

    :param records: Results of the probe
    """
    algorithms = list(dict.fromkeys(record["algorithm"] for record in records))
    figure = Figure(figsize=(3.6 * len(algorithms), 0.8 + 2.4 * len(places(records))), layout="constrained")
    axes = figure.subplots(len(places(records)), len(algorithms), sharex=True, sharey=True, squeeze=False)
    for row, place in zip(axes, places(records), strict=True):
        row[0].set_ylabel(f"{place[1]}, {place[0]}\n|Â|")
        for ax, algorithm in zip(row, algorithms, strict=True):
            ax.set_title(algorithm, fontsize="medium")
            here = [np.array(r["kept"], dtype=float) for r in at(records, place) if r["algorithm"] == algorithm]
            if not here:
                continue
            kept = np.mean(here, axis=0)
            ax.imshow(kept, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", origin="lower")
            for (i, j), value in np.ndenumerate(kept):
                if not np.isnan(value):
                    ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="w" if abs(value) > 0.7 else "k")
            ax.set_xticks(range(len(DISTANCES) - 1), bin_names(DISTANCES))
            ax.set_yticks(range(len(ADVANTAGES) - 1), bin_names(ADVANTAGES))
    figure.supxlabel("|log ρ|, gone in the direction of the advantage", fontsize="medium")
    save(figure, "dual_kept")


def bin_names(edges: np.ndarray) -> list[str]:
    """
    :param edges: Of bins, the last open
    :return: Their names
    """
    return [f"{low:g}–{high:g}" if np.isfinite(high) else f"> {low:g}" for low, high in pairwise(edges)]


def ratio_table(records: list[Record]) -> str:
    """
    :param records: Results of the probe
    :return: How far the samples are spread after the first and after the last epoch
    """
    centers = (LOG_RATIOS[1:] + LOG_RATIOS[:-1]) / 2
    rows = []
    for record in records:
        ratios = np.array(record["ratios"], dtype=float)
        far = [f"{shares[np.abs(centers) > 0.25].sum():.1%}" for shares in (ratios[0], ratios[-1])]
        furthest = f"{ratios[-1][[0, -1]].sum():.2%}"
        kept, samples = (np.array(record[name], dtype=float) for name in ("kept", "samples"))
        eager = kept[-1, -1]
        cells = [*far, furthest, "–" if np.isnan(eager) else f"{eager:.2f}", f"{samples[-1, -1]:.2%}"]
        rows.append((f"{record['regime']} {record['task']} {record['algorithm']} seed {record['seed']}", cells))
    columns = ["log ρ beyond ±¼, first epoch", "last epoch", "beyond ±1", "gradient kept, farthest bin", "samples in it"]
    return table("run", columns, rows)
