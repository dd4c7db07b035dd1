"""A supervisor whose ranks train nothing: `fake_job.py SPEC` supervises, `fake_job.py rank SPEC` is one rank.

`fake_job.py serve SPEC` takes spec files from standard input and forks both.

All but the engine is the real thing; the standard library suffices. The engine makes STEPS steps of 20 ms, or does what
FAKE_ENGINE says of its rank: `oom:1` (an OOM whose peer then loses its connection), `oom-resumed:1` (an OOM, but only after
resuming), `abort:0` (dies in C++, with last words).
"""

import os
import sys
import time
from pathlib import Path

from autofit.worker import faults, rank
from autofit.worker.heartbeat import Heartbeat
from autofit.worker.order import Order, read_order
from autofit.worker.report import RankReport
from autofit.worker.server import serve
from autofit.worker.supervisor import spawned, supervise


def engine(order: Order, report: RankReport, heartbeat: Heartbeat) -> None:
    heartbeat.beat("load")
    if order.resumed_from is None and order.output_dir.exists():
        raise RuntimeError("checkpoints of an earlier attempt are still there")
    fate, _, who = os.environ.get("FAKE_ENGINE", "").partition(":")
    for step in range(order.first_step, order.total_steps):
        heartbeat.beat("forward", step)
        faults.strike(report.rank, step, order.folder)
        time.sleep(0.02)
        if fate == "oom" and step == 1:
            if int(who) == report.rank:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")
            time.sleep(0.2)
            raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")
        if fate == "oom-resumed" and order.resumed_from and int(who) == report.rank:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")
        if fate == "abort" and int(who) == report.rank:
            sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'\n")
            sys.stderr.flush()
            os.abort()
        report.step_seconds.append(0.02 * (1 + report.rank))
        report.losses.append(2.0 + report.rank + 10 * step)
    report.phase_peak_bytes = {"forward": 100 + report.rank, "backward": 90}
    report.peak_device_bytes = 100 + report.rank
    report.step_tokens = report.step_effective_tokens = [128] * order.total_steps


if __name__ == "__main__":
    rank.ENGINES["transformers"] = lambda: engine
    path = Path(sys.argv[-1])
    if sys.argv[1] == "rank":
        sys.exit(rank.run_rank(read_order(path)))
    if sys.argv[1] == "serve":
        os.environ["AUTOFIT_SERVER"] = "1"  # it has what its ranks will have
        sys.exit(serve(read_order(path), lambda _: None, rank.run_rank))
    sys.exit(supervise(read_order(path), spawned([sys.executable, __file__, "rank", str(path)])))
