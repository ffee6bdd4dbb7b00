"""The pictures of the learning benchmark."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from protocol import IN_STEP, REGIMES
from readme import DOCS
from scores import AGGREGATES, MAX_RETURN, SCORES, Comparison, aggregates, iqm_curves, profiles

IMAGES = DOCS / "images"
#: Told apart by the colour-blind (Okabe and Ito), the ε of PPO and SPO and the two λ of R2VPO by their lines as well
COLORS = {
    "PPO 0.1": "#666666",
    "PPO 0.2": "#000000",
    "PPO 0.3": "#999999",
    "TRPO": "#E69F00",
    "TRPO 0.03": "#F0E442",
    "SPO 0.2": "#009E73",
    "SPO 0.3": "#1AA580",
    "SPO 0.4": "#33B18C",
    "SPO 0.8": "#66C2A5",
    "R2VPO fixed 0.3": "#56B4E9",
    "R2VPO fixed 0.5": "#2C93CE",
    "R2VPO fixed 1": "#0072B2",
    "R2VPO": "#D55E00",
}
LINES = {
    "PPO 0.1": ":",
    "PPO 0.3": "--",
    "TRPO 0.03": "--",
    "SPO 0.3": ":",
    "SPO 0.4": "-.",
    "SPO 0.8": "--",
    "R2VPO fixed 0.3": "-.",
    "R2VPO fixed 0.5": ":",
    "R2VPO fixed 1": "--",
}
LABELS = {
    "large_staggered": "large updates (256 × 256)",
    "middle_staggered": "between (256 × 64)",
    "small_staggered": "small updates (64 × 64)",
}
LABELS |= {regime: f"{LABELS[f'{regime}_staggered']}, in step" for regime in IN_STEP}


def legend(figure: Figure, axes: list[Axes]) -> None:
    """
    One legend of all axes: not each has every algorithm.

    :param figure: Where it stands
    :param axes: What it explains
    """
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    labels = sorted(handles, key=list(COLORS).index)
    # The longest label with its line is 1.7 inches wide
    columns = int(figure.get_figwidth() / 1.7)
    figure.legend([handles[label] for label in labels], labels, loc="outside upper center", ncols=columns)


def save(figure: Figure, name: str) -> None:
    """
    :param figure: A picture
    :param name: Of its file
    """
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / f"{name}.png", dpi=120)


def draw_headline(comparisons: list[Comparison], name: str) -> None:
    """
    :param comparisons: The regimes to show side by side
    :param name: Of the picture
    """
    figure = Figure(figsize=(5 * len(comparisons), 4.2), layout="constrained")
    axes = figure.subplots(1, len(comparisons), squeeze=False, sharey=True)[0]
    for ax, comparison in zip(axes, comparisons, strict=True):
        draw_sample_efficiency(ax, comparison)
    axes[0].set(ylabel="IQM of returns / 1000, training policy", ylim=(0, None))
    legend(figure, list(axes))
    save(figure, name)


def draw_sample_efficiency(ax: Axes, comparison: Comparison) -> None:
    """
    :param ax: Where to draw
    :param comparison: The runs of a regime
    """
    for algorithm, (value, low, high) in iqm_curves(comparison).items():
        steps = comparison.steps / 1e6
        ax.plot(steps, value, color=COLORS[algorithm], linestyle=LINES.get(algorithm, "-"), linewidth=2, label=algorithm)
        ax.fill_between(steps, low, high, color=COLORS[algorithm], alpha=0.15, linewidth=0)
    n_tasks = len(comparison.tasks)
    ax.set(title=f"{LABELS[comparison.regime]}, {n_tasks} tasks", xlabel="million steps", xlim=(0, None))
    ax.grid(alpha=0.3)


def draw_aggregates(comparison: Comparison) -> None:
    """
    Each aggregate of both scores with its interval.

    :param comparison: The runs of a regime
    """
    figure = Figure(figsize=(10, 1.2 + 0.6 * len(comparison.seeds)), layout="constrained")
    axes = figure.subplots(len(SCORES), len(AGGREGATES), sharey=True, sharex="col")
    for row, score in zip(axes, SCORES, strict=True):
        estimates = aggregates(comparison, score)
        for ax, name in zip(row, AGGREGATES, strict=True):
            for i, (algorithm, by_name) in enumerate(estimates.items()):
                value, low, high = by_name[name]
                ax.barh(i, high - low, left=low, height=0.7, color=COLORS[algorithm], alpha=0.5)
                ax.vlines(value, i - 0.35, i + 0.35, color=COLORS[algorithm], linewidth=2.5)
            ax.use_sticky_edges = False
            ax.grid(alpha=0.3, axis="x")
        row[0].set(yticks=range(len(estimates)), yticklabels=list(estimates), ylabel=score)
    axes[0, 0].invert_yaxis()
    for ax, name in zip(axes[0], AGGREGATES, strict=True):
        ax.set_title(f"{name} (less is better)" if name == "optimality gap" else name, fontsize="medium")
    save(figure, f"learning_{comparison.regime}_aggregates")


def draw_profiles(comparison: Comparison) -> None:
    """
    Share of runs above each return, for both scores.

    :param comparison: The runs of a regime
    """
    thresholds = np.linspace(0, 1, 101)
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, len(SCORES), sharey=True)
    for ax, score in zip(axes, SCORES, strict=True):
        for algorithm, (value, low, high) in profiles(comparison, score, thresholds).items():
            returns, color = MAX_RETURN * thresholds, COLORS[algorithm]
            ax.plot(returns, value, color=color, linestyle=LINES.get(algorithm, "-"), linewidth=2, label=algorithm)
            ax.fill_between(returns, low, high, color=color, alpha=0.12, linewidth=0)
        ax.set(title=score, xlabel="return", xlim=(0, MAX_RETURN), ylim=(0, 1))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("share of runs above")
    axes[0].legend()
    save(figure, f"learning_{comparison.regime}_profiles")


def draw_tasks(comparison: Comparison) -> None:
    """
    Task by task the learning curves: mean over seeds, and the seeds one by one, as a mean between two is nobody's return.

    :param comparison: The runs of a regime
    """
    n_columns = min(5, len(comparison.tasks))
    n_rows = -(-len(comparison.tasks) // n_columns)
    figure = Figure(figsize=(3 * n_columns, 0.5 + 2.6 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharex=True, squeeze=False)
    for i, (ax, task) in enumerate(zip(axes.flat, comparison.tasks, strict=False)):
        for algorithm in comparison.seeds:
            curves, color = comparison.curve(algorithm)[:, i], COLORS[algorithm]
            line = LINES.get(algorithm, "-")
            ax.plot(comparison.steps / 1e6, curves.T, color=color, alpha=0.25, linewidth=0.7)
            ax.plot(comparison.steps / 1e6, curves.mean(axis=0), color=color, linestyle=line, linewidth=2, label=algorithm)
        ax.set_title(task, fontsize="medium")
        ax.set(xlim=(0, REGIMES[comparison.regime].total_timesteps / 1e6), ylim=(0, None))
        ax.grid(alpha=0.3)
    for ax in axes.flat[len(comparison.tasks) :]:
        ax.set_axis_off()
    figure.supxlabel("million steps", fontsize="medium")
    figure.supylabel("return of the training policy", fontsize="medium")
    legend(figure, list(axes.flat))
    save(figure, f"learning_{comparison.regime}_tasks")
