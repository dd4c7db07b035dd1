"""Trials forked from a server, by real processes that train nothing: the same ends as with processes of their own.

And a server whose forks would not be like new processes refuses.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_supervisor import DEADLINE, FAKE_JOB, rank_pids, wait_for
from worker_orders import read_result, write_spec

from autofit.worker.pages import file_pages, map_again
from autofit.worker.processes import Forked
from autofit.worker.supervisor import DRIVER_PID


class Server:
    """A server of fake jobs, as the launcher talks to it."""

    def __init__(self, first: Path, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(FAKE_JOB), "serve", str(first)],
            env={**os.environ, DRIVER_PID: str(os.getpid()), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdin and self.process.stdout
        self.orders, self._answers = self.process.stdin, self.process.stdout

    def order(self, spec: Path) -> dict[str, Any]:
        self.orders.write(f"{spec}\n".encode())
        self.orders.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._answers.readline())
        return found

    def run(self, spec: Path) -> int:
        assert self.order(spec).keys() == {"pid"}
        status: int = self.answer()["exit"]
        return status


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def go(first: Path, **env: str) -> Server:
        servers.append(Server(first, **env))
        return servers[-1]

    yield go
    for server in servers:
        server.process.kill()
        server.process.wait(DEADLINE)


def gone(pids: list[int]) -> bool:
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            continue
    return True


def test_one_server_runs_trials_that_end_as_they_would_alone(start: Callable[..., Server], tmp_path: Path) -> None:
    first, second, third = (write_spec(tmp_path / name, **knobs) for name, knobs in SPECS.items())
    server = start(first, FAKE_ENGINE="oom-resumed:1")
    assert server.run(first) == 0
    assert server.run(second) == 1
    assert server.run(third) == 0
    assert read_result(first).losses == [2.5, 12.5, 22.5]
    assert str(read_result(second).message).startswith("after resuming from the checkpoint: DefaultCPUAllocator")
    assert [rank.rank for rank in read_result(third).ranks] == [0, 1]
    assert (tmp_path / "b" / "stderr.log").read_text().count("Traceback") == 1
    server.orders.close()
    assert server.process.wait(DEADLINE) == 0


SPECS: dict[str, dict[str, Any]] = {
    "a": {},
    "b": {"measure": {"save": True, "resume": True}, "zero_stage": 2},
    "c": {"micro_batch_size": 4, "cutoff_len": 64},
}


def test_a_trial_is_a_group_of_its_own_and_can_be_ended_alone(start: Callable[..., Server], tmp_path: Path) -> None:
    spec, other = write_spec(tmp_path / "a"), write_spec(tmp_path / "b")
    server = start(spec, AUTOFIT_FAULT="hang:0:1,hang:1:1")
    group = server.order(spec)["pid"]
    pids = wait_for(lambda: rank_pids(spec))
    assert {os.getpgid(pid) for pid in pids} == {group} != {os.getpgid(server.process.pid)}
    os.killpg(group, signal.SIGKILL)
    assert server.answer() == {"exit": -signal.SIGKILL}
    wait_for(lambda: gone(pids))
    assert server.order(other).keys() == {"pid"}


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_trials_die_with_their_server(start: Callable[..., Server], tmp_path: Path, how: str) -> None:
    spec = write_spec(tmp_path)
    server = start(spec, AUTOFIT_FAULT="hang:0:1,hang:1:1,ignore-sigterm")
    pids = [server.order(spec)["pid"], *wait_for(lambda: rank_pids(spec))]
    if how == "killed":
        server.process.kill()
    else:
        server.orders.close()
    server.process.wait(DEADLINE)
    wait_for(lambda: gone(pids))


def test_a_trial_whose_server_died_as_it_was_forked_does_not_begin(tmp_path: Path) -> None:
    """The trial looks for its parent only when the server has gone: it must not take the next one for it."""
    code = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from autofit.worker import server\n"
        "from autofit.worker.order import read_order\n"
        "from autofit.worker.processes import Forked\n"
        "order, me, run = read_order(Path(sys.argv[1])), os.getpid(), server._trial\n"
        "def late(*given):\n"
        "    while os.getppid() == me:\n"
        "        time.sleep(0.01)\n"
        "    return run(*given)\n"
        "server._trial = late\n"
        "life = lambda _: (order.folder / 'lived').touch() or time.sleep(600)\n"
        "os.environ['AUTOFIT_SERVER'] = '1'\n"
        "server.serve(order, lambda _: None, life)\n"
    )
    spec = write_spec(tmp_path)
    command = [sys.executable, "-c", code, str(spec)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin and server.stdout
        server.stdin.write(f"{spec}\n".encode())
        server.stdin.flush()
        trial = json.loads(server.stdout.readline())["pid"]
        server.kill()
    wait_for(lambda: gone([trial]))
    assert not (tmp_path / "lived").exists()


def test_a_server_dies_with_its_driver(tmp_path: Path) -> None:
    """A driver in between that is killed; the pipe to the server stays open, so only the kernel can tell it."""
    spec = write_spec(tmp_path)
    read, write = os.pipe()
    os.write(write, f"{spec}\n".encode())
    code = (
        "import os, subprocess, sys, time\n"
        f"env = {{**os.environ, {DRIVER_PID!r}: str(os.getpid())}}\n"
        f"print(subprocess.Popen(sys.argv[1:], env=env, stdin={read}, stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, sys.executable, str(FAKE_JOB), "serve", str(spec)]
    env = {**os.environ, "AUTOFIT_FAULT": "hang:0:1,hang:1:1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, pass_fds=[read]) as driver:
        assert driver.stdout is not None
        pids = [int(driver.stdout.readline()), *wait_for(lambda: rank_pids(spec))]
        driver.kill()
    wait_for(lambda: gone(pids))
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(("fault", "why"), [("leak-server:32", "memory has grown by"), ("thread-server", "threads run beside")])
def test_a_server_that_is_no_longer_as_new_refuses(start: Callable[..., Server], tmp_path: Path, fault: str, why: str) -> None:
    spec = write_spec(tmp_path)
    server = start(spec, AUTOFIT_FAULT=fault)
    assert server.run(spec) == 0
    assert why in server.order(spec)["refused"]
    assert server.process.wait(DEADLINE) == 1


@pytest.mark.parametrize("change", [{"num_gpus": 1}, {"engine": "llamafactory"}, {"device": "cuda"}, None])
def test_an_order_of_another_kind_is_refused(
    start: Callable[..., Server], tmp_path: Path, change: dict[str, Any] | None
) -> None:
    spec, other = write_spec(tmp_path / "a"), write_spec(tmp_path / "b")
    content = json.loads(other.read_text())
    if change is None:
        other.write_text('{"trial": ')
    elif "num_gpus" in change:
        other.write_text(json.dumps({**content, "trial": {**content["trial"], **change}}))
    else:
        other.write_text(json.dumps({**content, **change}))
    server = start(spec)
    assert server.run(spec) == 0
    assert server.order(other).keys() == {"refused"}
    assert not (tmp_path / "b" / "result.json").exists()


def test_a_fork_has_the_pages_of_files_that_its_parent_had() -> None:
    """What `meter_cpu` would otherwise take for the training's memory."""
    pages = file_pages()
    had = sum(length for _, length in pages)
    read, write = os.pipe()

    def life() -> int:
        before = sum(length for _, length in file_pages())
        map_again(pages)
        again = sum(length for _, length in file_pages())
        os.write(write, json.dumps([before, again]).encode())
        return 0

    child = Forked(life)
    end = time.monotonic() + DEADLINE
    while child.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    before, again = json.loads(os.read(read, 4096))
    assert before < had <= again
