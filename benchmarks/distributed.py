"""
Training in several processes: speed, and what of the time is communication.

    python benchmarks/distributed.py run       # writes benchmarks/results/distributed_cpu.json
    python benchmarks/distributed.py report    # the table of docs/distributed.md

Each process has one core, on which its EnvPool threads are pinned too. Weak scaling: each has as much to do as one alone,
environments and part of a minibatch. Strong scaling: all together have. Apart: trainings that have nothing to do with each
other, side by side, which is what the machine itself gives for more processes. They take turns.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch as th
from readme import DOCS, replace_in

RESULTS = Path(__file__).parent / "results" / "distributed_cpu.json"
ENV_ID = "HalfCheetah-v5"
N_ENVS, N_STEPS, N_EPOCHS = 16, 128, 10
#: Units of the two hidden layers, and minibatch of each process
WORKLOADS = {"64-64, batch 256": (64, 256), "256-256, batch 1024": (256, 1024)}
N_PROCESSES = 2
#: How the work is divided, and the name of it in the table
SCALINGS = {"alone": "1", "apart": "2 apart", "weak": "2, as much each", "strong": "2, as much together"}
#: Rollouts measured in each turn: so many that trainings apart run at the same time although one was compiled sooner
N_ROLLOUTS = 40
#: What is measured of a rollout and its update. Communication is part of the two, and includes waiting for the slower one
PARTS = ("rollout", "update", "communication")
#: For how many processes the model is asked
MODELLED = (2, 4, 8, 16, 32)


# --- In each of the processes


def measure(workload: str, scaling: str, core_number: int) -> dict[str, Any]:
    """
    :param workload: One of ``WORKLOADS``
    :param scaling: One of ``SCALINGS``
    :param core_number: Which of the cores that there are is this process's
    :return: Seconds of each part, one value for each rollout; seconds of an all-reduce by the number of its bytes
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    core = sorted(os.sched_getaffinity(0))[core_number]
    os.sched_setaffinity(0, {core})
    th.set_num_threads(1)
    from sb3_r2vpo import R2VPO, make_envpool_vec_env

    units, batch_size = WORKLOADS[workload]
    divided, multiplied = (world_size, 1) if scaling == "strong" else (1, world_size)
    env = make_envpool_vec_env(ENV_ID, N_ENVS // divided, seed=0, num_threads=1, env_kwargs=dict(thread_affinity_offset=core))
    settings: dict[str, Any] = dict(n_steps=N_STEPS, batch_size=batch_size * multiplied, n_epochs=N_EPOCHS)
    network = dict(net_arch=[units, units])
    model = R2VPO("MlpPolicy", env, compile=True, seed=0, device="cpu", policy_kwargs=network, **settings)
    seconds: dict[str, list[float]] = defaultdict(list)
    communication: list[float] = []
    time_calls(model, "collect_rollouts", seconds["rollout"])
    time_calls(model, "train", seconds["update"])
    if world_size > 1:
        time_calls(model._workers, "_meet", communication)

    def sum_up(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        # The first step of a rollout: what was before belongs to the last one and its update
        if model.rollout_buffer.pos == 0:
            seconds["communication"].append(sum(communication))
            communication.clear()
        return True

    # The first two rollouts compile, the last one only ends the one before
    model.learn((2 + N_ROLLOUTS + 1) * model._rollout_size, sum_up)
    vectors = [sum(p.numel() for p in model.policy.parameters()), 2**20]
    all_reduce = {4 * n: all_reduce_seconds(model, n) for n in vectors} if world_size > 1 else {}
    measured = {part: seconds[part][2 : 2 + N_ROLLOUTS] for part in ("rollout", "update")}
    return dict(seconds={**measured, "communication": seconds["communication"][3 : 3 + N_ROLLOUTS]}, all_reduce=all_reduce)


def time_calls(owner: Any, name: str, seconds: list[float]) -> None:
    """
    :param owner: An object
    :param name: One of its methods
    :param seconds: Is filled with the time of each call
    """
    method = getattr(owner, name)

    def timed_method(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = method(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    setattr(owner, name, timed_method)


def all_reduce_seconds(model: Any, n: int) -> float:
    """
    :param model: A model in several processes
    :param n: Number of elements
    :return: Median seconds of one all-reduce after another, where nobody waits for anything else
    """
    vector, seconds = th.zeros(n), []
    for _ in range(300):
        start = time.perf_counter()
        model._workers.average(vector)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# --- In the process that starts them


def run(n_turns: int) -> None:
    """
    :param n_turns: How often each is measured
    """
    share = share_of_others()
    rows: list[dict[str, Any]] = []
    for turn in range(n_turns):
        for workload, scaling in product(WORKLOADS, SCALINGS):
            rows.append(dict(workload=workload, scaling=scaling, turn=turn, **start(workload, scaling)))
            print(
                workload, scaling, {part: round(statistics.median(rows[-1]["seconds"][part]), 4) for part in PARTS}, flush=True
            )
    results = dict(
        date=date.today().isoformat(),
        machine=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        torch=th.__version__,
        share_of_others=share,
        rows=rows,
    )
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def share_of_others() -> float:
    """
    :return: What share of the cores other processes take, before anything is measured
    """

    def ticks() -> tuple[int, int]:
        times = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        idle = times[3] + times[4]
        return sum(times) - idle, sum(times)

    busy_before, all_before = ticks()
    time.sleep(3.0)
    busy, every = ticks()
    return (busy - busy_before) / (every - all_before)


def start(workload: str, scaling: str) -> dict[str, Any]:
    """
    :param workload: One of ``WORKLOADS``
    :param scaling: One of ``SCALINGS``
    :return: What the first of its processes has measured
    """
    arguments = [__file__, "measure", "--workload", workload, "--scaling", scaling]
    if scaling in ("weak", "strong"):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(N_PROCESSES)]
        commands = [[*launcher, *arguments]]
    else:
        cores = range(N_PROCESSES if scaling == "apart" else 1)
        commands = [[*arguments, "--core-number", str(core)] for core in cores]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    popen = partial(subprocess.Popen, env=environment, stdout=subprocess.PIPE, text=True)
    processes = [popen([sys.executable, *command]) for command in commands]
    outputs = [process.communicate()[0] for process in processes]
    return json.loads(next(line for line in outputs[0].splitlines() if line.startswith("{")))


# --- The report


def seconds_of(results: dict[str, Any], workload: str, scaling: str) -> dict[str, float]:
    """
    :param results: The results file
    :param workload: One of ``WORKLOADS``
    :param scaling: One of ``SCALINGS``
    :return: Median seconds of a rollout and its update, by part
    """
    rows = [row for row in results["rows"] if (row["workload"], row["scaling"]) == (workload, scaling)]
    return {part: statistics.median(x for row in rows for x in row["seconds"][part]) for part in PARTS}


def modelled_seconds(results: dict[str, Any], workload: str, n: int) -> float:
    """
    What n processes do between two communications takes as long as with two. Communication is a ring all-reduce in each
    gradient step: 2(n−1) messages, and 2(n−1)/n times the vector. Its bandwidth is that of a large vector between two
    processes on this machine, the time of a message what is left of the communication in a training of two.

    :param results: The results file
    :param workload: One of ``WORKLOADS``
    :param n: Number of processes
    :return: Seconds of a rollout and its update, each process with as much to do as one alone
    """
    two = seconds_of(results, workload, "weak")
    measured: dict[int, list[float]] = defaultdict(list)
    for row in (row for row in results["rows"] if row["workload"] == workload):
        for size, seconds in row["all_reduce"].items():
            measured[int(size)].append(seconds)
    (small, small_seconds), (large, large_seconds) = sorted((size, statistics.median(x)) for size, x in measured.items())
    per_byte = max(large_seconds - small_seconds, 0.0) / (large - small)
    gradient_steps = N_EPOCHS * N_ENVS * N_STEPS // WORKLOADS[workload][1]
    message = max(two["communication"] / gradient_steps - per_byte * small, 0.0) / 2
    all_reduce = 2 * (n - 1) * message + 2 * (n - 1) / n * small * per_byte
    return two["rollout"] + two["update"] - two["communication"] + gradient_steps * all_reduce


def report() -> None:
    """Put the table into docs/distributed.md."""
    results = json.loads(RESULTS.read_text())
    lines = [
        "| network, its minibatch | processes | steps per second | of the time: rollout | update | communication in both |",
        "|---|---|---|---|---|---|",
    ]
    curves = []
    for workload in WORKLOADS:
        alone = seconds_of(results, workload, "alone")
        alone_total = alone["rollout"] + alone["update"]
        for scaling, label in SCALINGS.items():
            seconds = seconds_of(results, workload, scaling)
            total = seconds["rollout"] + seconds["update"]
            work = N_PROCESSES if scaling in ("apart", "weak") else 1
            shares = " | ".join(f"{seconds[part] / total:.0%}" for part in PARTS)
            speed = work * N_ENVS * N_STEPS / total
            lines.append(f"| {workload} | {label} | {speed:,.0f} ({work * alone_total / total:.2f}×) | {shares} |")
        speedups = [f"{n * alone_total / modelled_seconds(results, workload, n):.1f}× with {n}" for n in MODELLED]
        curves.append(f"{', '.join(speedups)} ({workload})")
    busy = (
        f"**Taken on a machine of which other processes took {results['share_of_others']:.0%}: no figures to go by, "
        "to be taken again.** "
        if results["share_of_others"] > 0.05
        else ""
    )
    sentence = (
        f"{busy}{results['machine']}, {results['date']}, torch {results['torch']}. A model, not a measurement, of more "
        f"processes with as much to do each, from the parts of two on one machine: {'; '.join(curves)}."
    )
    replace_in(DOCS / "distributed.md", "distributed", "\n".join(lines) + f"\n\n{sentence}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "measure"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--workload", choices=WORKLOADS, default=next(iter(WORKLOADS)), help="of what is measured in one process"
    )
    parser.add_argument("--scaling", choices=SCALINGS, default="alone", help="of what is measured in one process")
    parser.add_argument("--core-number", type=int, default=int(os.environ.get("RANK", 0)), help="its core")
    args = parser.parse_args()
    if args.command == "run":
        run(args.turns)
    elif args.command == "report":
        report()
    else:
        measured = measure(args.workload, args.scaling, args.core_number)
        if args.core_number == 0:
            print(json.dumps(measured), flush=True)
