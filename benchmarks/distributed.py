"""
Training in several processes: speed, and what of the time is communication.

    python benchmarks/distributed.py run       # writes benchmarks/results/distributed_cpu.json
    python benchmarks/distributed.py report    # the table of README.md

Each process has one core, on which its EnvPool threads are pinned too. Weak scaling: each has as much to do as one alone,
environments and part of a minibatch. Strong scaling: all together have. The numbers of processes take turns.
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
from pathlib import Path
from typing import Any

import torch as th
from readme import README, replace_in

RESULTS = Path(__file__).parent / "results" / "distributed_cpu.json"
ENV_ID = "HalfCheetah-v5"
N_ENVS, N_STEPS, BATCH_SIZE, N_EPOCHS = 16, 128, 256, 10
N_PROCESSES = (1, 2)
SCALINGS = ("weak", "strong")
#: Rollouts measured in each turn
N_ROLLOUTS = 5
#: What is measured of a rollout and its update. Communication is part of the two, and includes waiting for the slower one
PARTS = ("rollout", "update", "communication")
#: For how many processes the model is asked
MODELLED = (2, 4, 8, 16, 32)


# --- In each of the processes


def measure(scaling: str) -> dict[str, Any]:
    """
    :param scaling: One of ``SCALINGS``
    :return: Seconds of each part, one value for each rollout; seconds of an all-reduce by the number of its bytes
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    core = sorted(os.sched_getaffinity(0))[rank]
    os.sched_setaffinity(0, {core})
    th.set_num_threads(1)
    from sb3_r2vpo import R2VPO, make_envpool_vec_env

    divided, multiplied = (1, world_size) if scaling == "weak" else (world_size, 1)
    env = make_envpool_vec_env(ENV_ID, N_ENVS // divided, seed=0, num_threads=1, env_kwargs=dict(thread_affinity_offset=core))
    settings = dict(n_steps=N_STEPS, batch_size=BATCH_SIZE * multiplied, n_epochs=N_EPOCHS)
    model = R2VPO("MlpPolicy", env, compile=True, seed=0, device="cpu", **settings)  # type: ignore[arg-type]
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
    load = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    for turn in range(n_turns):
        for scaling in SCALINGS:
            for n in N_PROCESSES if scaling == "weak" else N_PROCESSES[1:]:
                rows.append(dict(n=n, scaling=scaling, turn=turn, **start(n, scaling)))
                print(json.dumps(rows[-1]), flush=True)
    results = dict(
        date=date.today().isoformat(),
        machine=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        torch=th.__version__,
        # With other things: then the figures say little
        busy=load > 0.5,
        load=load,
        rows=rows,
    )
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def start(n: int, scaling: str) -> dict[str, Any]:
    """
    :param n: Number of processes
    :param scaling: One of ``SCALINGS``
    :return: What the first of them has measured
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    command = [sys.executable, *(torchrun if n > 1 else []), __file__, "measure", "--scaling", scaling]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


# --- The report


def seconds_of(results: dict[str, Any], n: int, scaling: str) -> dict[str, float]:
    """
    :param results: The results file
    :param n: Number of processes
    :param scaling: One of ``SCALINGS``
    :return: Median seconds of a rollout and its update, by part
    """
    # One process has as much to do in both
    rows = [row for row in results["rows"] if row["n"] == n and (row["scaling"] == scaling or n == 1)]
    return {part: statistics.median(x for row in rows for x in row["seconds"][part]) for part in PARTS}


def modelled_seconds(results: dict[str, Any], n: int) -> float:
    """
    A gradient step of n processes needs what that of one does, and a ring all-reduce: 2(n−1) messages, and 2(n−1)/n times the
    vector. Latency and bandwidth are those measured between two processes on this machine.

    :param results: The results file
    :param n: Number of processes
    :return: Seconds of a rollout and its update, each process with as much to do as one alone
    """
    alone = seconds_of(results, 1, "weak")
    measured: dict[int, list[float]] = defaultdict(list)
    for row in results["rows"]:
        for size, seconds in row["all_reduce"].items():
            measured[int(size)].append(seconds)
    (small, small_seconds), (large, large_seconds) = sorted((size, statistics.median(x)) for size, x in measured.items())
    per_byte = max(large_seconds - small_seconds, 0.0) / (large - small)
    latency = max(small_seconds - per_byte * small, 0.0) / 2
    all_reduce = 2 * (n - 1) * latency + 2 * (n - 1) / n * small * per_byte
    gradient_steps = N_EPOCHS * N_ENVS * N_STEPS // BATCH_SIZE
    return alone["rollout"] + alone["update"] + gradient_steps * all_reduce


def report() -> None:
    """Put the table into the README."""
    results = json.loads(RESULTS.read_text())
    lines = [
        "| processes | steps per second | of the time: rollout | update | communication in both |",
        "|---|---|---|---|---|",
    ]
    one = seconds_of(results, 1, "weak")
    speed_of_one = N_ENVS * N_STEPS / (one["rollout"] + one["update"])
    for scaling in SCALINGS:
        for n in N_PROCESSES if scaling == "weak" else N_PROCESSES[1:]:
            seconds = seconds_of(results, n, scaling)
            total = seconds["rollout"] + seconds["update"]
            speed = N_ENVS * N_STEPS * (n if scaling == "weak" else 1) / total
            label = "1" if n == 1 else f"{n}, {'as much each' if scaling == 'weak' else 'as much together'}"
            shares = " | ".join(f"{seconds[part] / total:.0%}" for part in PARTS)
            lines.append(f"| {label} | {speed:,.0f} ({speed / speed_of_one:.2f}×) | {shares} |")
    model = [(n, n * (one["rollout"] + one["update"]) / modelled_seconds(results, n)) for n in MODELLED]
    curve = ", ".join(f"{speedup:.1f}× with {n}" for n, speedup in model)
    busy = (
        f"**Taken on a machine that was busy with other things (load {results['load']:.0f}): no figures to go by, "
        "to be taken again.** "
        if results["busy"]
        else ""
    )
    sentence = (
        f"{busy}{results['machine']}, {results['date']}, torch {results['torch']}. A model, not a measurement, of more "
        f"processes with as much to do each, from the time of one and of an all-reduce between two on one machine: {curve}."
    )
    replace_in(README, "distributed", "\n".join(lines) + f"\n\n{sentence}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "measure"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--scaling", choices=SCALINGS, default="weak", help="of what is measured in one process")
    args = parser.parse_args()
    if args.command == "run":
        run(args.turns)
    elif args.command == "report":
        report()
    else:
        measured = measure(args.scaling)
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(measured), flush=True)
