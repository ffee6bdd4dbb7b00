"""Many trainings: those that the results file lacks, side by side in processes of their own, each appended when finished."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from protocol import Run, configuration
from tqdm import tqdm

Record = dict[str, Any]


def run_arguments(parser: argparse.ArgumentParser, results: Path, tasks: Sequence[str], seeds: Sequence[int]) -> None:
    """
    What the benchmarks' command lines have in common.

    :param parser: The command line
    :param results: The committed results file
    :param tasks: To choose from
    :param seeds: Those that are run
    """
    parser.add_argument("--tasks", nargs="+", default=list(tasks), choices=tasks)
    parser.add_argument("--seeds", nargs="+", default=list(seeds), type=int)
    parser.add_argument("--n-jobs", type=int, default=2, help="runs side by side; one with 256 environments takes 3 GB")
    parser.add_argument("--results", type=Path, default=results, help="the results file")
    parser.add_argument("--total-timesteps", type=int, help="other than the protocol's, to try things out")


def common_changes(args: argparse.Namespace) -> dict[str, Any]:
    """
    :param args: The command line
    :return: What all of its runs change in the protocol
    """
    return {} if args.total_timesteps is None else {"total_timesteps": args.total_timesteps}


def run_missing(
    runs: Iterable[Run], results: Path, n_jobs: int, script: str = "training.py", device: str | None = None
) -> None:
    """
    Run what the results lack, in the order given.

    :param runs: The trainings
    :param results: The results file
    :param n_jobs: How many trainings side by side, each with one thread
    :param script: What trains, a neighbour of this file
    :param device: Its second argument, if it takes one
    """
    done = {key(record) for record in load(results)}
    missing = [run for run in runs if key(run._asdict()) not in done]
    steps = [configuration(run)["total_timesteps"] / 1e6 for run in missing]
    run_side_by_side(missing, steps, results, n_jobs, script, device)


def run_side_by_side(
    missing: Sequence[Any], steps: Sequence[float], results: Path, n_jobs: int, script: str, device: str | None = None
) -> None:
    """
    Run all, each record appended when it is there. What fails or is killed leaves nothing, and is named.

    :param missing: The trainings, named tuples
    :param steps: Millions of timesteps of each
    :param results: The results file
    :param n_jobs: How many trainings side by side, each with one thread
    :param script: What trains, a neighbour of this file
    :param device: Its second argument, if it takes one
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    failed = []
    with (
        ThreadPoolExecutor(n_jobs) as pool,
        tqdm(
            total=sum(steps), unit="M steps", bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} M steps, {remaining} left"
        ) as bar,
    ):
        running = {pool.submit(run_in_process, run, script, device): (run, n) for run, n in zip(missing, steps, strict=True)}
        try:
            for future in as_completed(running):
                run, n = running[future]
                bar.update(n)
                try:
                    record = future.result()
                except RuntimeError as error:
                    failed.append(run)
                    bar.write(f"{name(run)} FAILED: {error}")
                    continue
                append(results, record)
                bar.write(f"{name(run)}: {record['wall_seconds']:.0f} s")
        except BaseException:
            # Else leaving the pool runs them all, and appends none
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        sys.exit(f"{len(failed)} of {len(missing)} failed: " + "; ".join(map(name, failed)))


def run_in_process(run: Any, script: str, device: str | None = None) -> Record:
    """
    :param run: A training
    :param script: What trains, a neighbour of this file
    :param device: Its second argument, if it takes one
    :return: Its record
    :raises RuntimeError: When its process came to another end
    """
    process = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), json.dumps(run._asdict()), *([device] if device else [])],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if process.returncode != 0:
        last_words = process.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"exit status {process.returncode} {' '.join(last_words)}")
    # The simulators may have printed before
    return json.loads(process.stdout.splitlines()[-1])


def append(results: Path, record: Record) -> None:
    """
    :param results: The results file
    :param record: What to append, in one piece
    """
    line = json.dumps(record, separators=(",", ":")) + "\n"
    file = os.open(results, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read(results: Path) -> list[Record]:
    """
    :param results: A results file, which may not be there yet
    :return: All of its records
    """
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def load(results: Path) -> list[Record]:
    """
    :param results: The results file
    :return: Its records, without those of an earlier configuration
    """
    records = read(results)
    current = [record for record in records if is_current(record)]
    if len(current) < len(records):
        print(
            f"{results.name}: {len(records) - len(current)} runs with an earlier configuration do not count", file=sys.stderr
        )
    return current


def is_current(record: Record) -> bool:
    """
    :param record: A record
    :return: Whether the run would still be run like that. Arguments that came or went since do not matter
    """
    try:
        now = json.loads(json.dumps(configuration(Run(**{field: record[field] for field in Run._fields}))))
    except KeyError:  # An algorithm or regime that is no more
        return False
    before = record["configuration"]
    return all(now[argument] == before[argument] for argument in now.keys() & before.keys())


def key(record: Record) -> str:
    """
    :param record: A record, or a run as dictionary
    :return: What tells it from others
    """
    return json.dumps([record[field] for field in Run._fields], sort_keys=True)


def name(run: Any) -> str:
    """
    :param run: A training
    :return: Its name
    """
    changes = "".join(f" {argument}={value}" for argument, value in getattr(run, "changes", {}).items())
    fields = {field: value for field, value in run._asdict().items() if field not in ("seed", "changes")}
    what = " ".join(field if value is True else value for field, value in fields.items() if value is not False)
    return f"{what}{changes} seed {run.seed}".strip()
