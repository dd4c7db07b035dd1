"""The ZeRO terms against real DeepSpeed on two gloo ranks, on the CPU.

Each configuration trains a small model of its own under DeepSpeed and counts the bytes of torch's CPU allocator (profiler
memory events, exact). The prediction sees only the parameter list, the settings and the one-rank trace of the same model
without DeepSpeed. Writes benchmarks/results/zero_accuracy.json.

    python benchmarks/zero_accuracy.py [--only NAME] [--no-write]
"""

import argparse
import contextlib
import gc
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autofit.predict.zero import Moment, Parameter, ZeroSettings, predict_zero

STORED = Path(__file__).parent / "results" / "zero_accuracy.json"
RANKS = 2
MARK = 500_000_003
"""Bytes of the marker allocations: a size that no tensor of the models has; marker k is MARK + k."""


@dataclass(frozen=True)
class Case:
    """One configuration. Sizes in elements; `bias` and `blocks` vary the shapes of the parameters."""

    name: str
    stage: int
    hidden: int
    ffn: int
    blocks: int
    vocab: int
    tokens: int
    bias: bool = False
    frozen_blocks: int = 0
    freeze_embedding: bool = False
    accumulation: int = 1
    settings: dict[str, Any] | None = None


def z3(bucket: int, prefetch: int, persist: int, reuse: int, **more: Any) -> dict[str, Any]:
    return {
        "reduce_bucket_size": bucket,
        "stage3_prefetch_bucket_size": prefetch,
        "stage3_param_persistence_threshold": persist,
        "stage3_max_reuse_distance": reuse,
        **more,
    }


BILLION = 1_000_000_000
# Not one of these was run while the terms were written.
FRESH = (
    Case("z1-odd-bias", 1, 150, 403, 3, 2111, 96, bias=True, settings={"reduce_bucket_size": 150_000}),
    Case("z1-frozen-embedding", 1, 224, 640, 5, 4001, 128, freeze_embedding=True, settings={"reduce_bucket_size": 3_000_000}),
    Case(
        "z1-overlap-accumulated",
        1,
        128,
        384,
        6,
        1777,
        256,
        accumulation=3,
        settings={"overlap_comm": True, "reduce_bucket_size": 90_000},
    ),
    Case("z1-round-robin", 1, 160, 480, 4, 2500, 64, settings={"round_robin_gradients": True, "reduce_bucket_size": 400_000}),
    Case(
        "z2-llamafactory",
        2,
        176,
        500,
        4,
        2300,
        64,
        bias=True,
        settings={"round_robin_gradients": True, "overlap_comm": False, "reduce_bucket_size": 900_000},
    ),
    Case(
        "z2-frozen-blocks",
        2,
        208,
        560,
        6,
        1500,
        192,
        frozen_blocks=4,
        freeze_embedding=True,
        settings={"overlap_comm": True, "reduce_bucket_size": 250_000},
    ),
    Case("z2-oversized", 2, 144, 300, 3, 6007, 48, settings={"overlap_comm": False, "reduce_bucket_size": 120_000}),
    Case(
        "z2-accumulated",
        2,
        192,
        700,
        3,
        999,
        512,
        accumulation=4,
        settings={"overlap_comm": False, "reduce_bucket_size": 600_000},
    ),
    Case("z2-allreduce", 2, 136, 444, 5, 3100, 80, settings={"reduce_scatter": False, "reduce_bucket_size": 500_000}),
    Case(
        "z3-llamafactory",
        3,
        160,
        432,
        6,
        2900,
        96,
        settings=z3(25_600, 23_040, 1_600, BILLION, overlap_comm=False, sub_group_size=BILLION),
    ),
    Case("z3-odd-bias", 3, 151, 389, 4, 1801, 64, bias=True, settings=z3(77_777, 200_000, 400, 50_000)),
    Case(
        "z3-frozen-blocks",
        3,
        200,
        610,
        6,
        2203,
        128,
        frozen_blocks=3,
        freeze_embedding=True,
        settings=z3(300_000, 150_000, 0, 0),
    ),
    Case(
        "z3-prefetch-far",
        3,
        168,
        512,
        8,
        1600,
        64,
        settings=z3(1_200_000, 900_000, 200, 400_000, stage3_max_live_parameters=1_000_000),
    ),
    Case(
        "z3-sub-groups", 3, 184, 520, 5, 2750, 256, accumulation=2, settings=z3(200_000, 0, 100_000, 0, sub_group_size=300_000)
    ),
    Case("z3-everything-persisted", 3, 112, 336, 4, 1400, 700, settings=z3(2_000_000, 50_000, 10_000_000, BILLION)),
)
# These were.
DEVELOPMENT = (
    Case("dev-z1", 1, 192, 512, 4, 3000, 64, settings={"overlap_comm": False, "reduce_bucket_size": 200_000}),
    Case("dev-z1-overlap", 1, 192, 512, 4, 3000, 64, settings={"overlap_comm": True, "reduce_bucket_size": 200_000}),
    Case("dev-z2", 2, 192, 512, 4, 3000, 64, settings={"overlap_comm": False, "reduce_bucket_size": 200_000}),
    Case(
        "dev-z2-accum",
        2,
        192,
        512,
        4,
        3000,
        64,
        accumulation=2,
        settings={"overlap_comm": True, "reduce_bucket_size": 2_000_000},
    ),
    Case("dev-z3", 3, 192, 512, 4, 3000, 64, settings=z3(200_000, 100_000, 1000, 0, overlap_comm=False)),
    Case("dev-z3-reuse", 3, 192, 512, 4, 3000, 64, settings=z3(2_000_000, 0, 0, BILLION, overlap_comm=True)),
)


def build(case: Case) -> Any:
    """The model of a case, bf16, frozen parts included."""
    import torch
    from torch import nn

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(case.hidden))

        def forward(self, x: Any) -> Any:
            return nn.functional.rms_norm(x, (case.hidden,), self.weight)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Norm()
            self.up = nn.Linear(case.hidden, case.ffn, bias=case.bias)
            self.down = nn.Linear(case.ffn, case.hidden, bias=case.bias)

        def forward(self, x: Any) -> Any:
            return x + self.down(nn.functional.relu(self.up(self.norm(x))))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(case.vocab, case.hidden)
            self.blocks = nn.ModuleList(Block() for _ in range(case.blocks))
            self.norm = Norm()
            self.head = nn.Linear(case.hidden, case.vocab, bias=False)

        def forward(self, ids: Any) -> Any:
            x = self.embed(ids)
            for block in self.blocks:
                x = block(x)
            return nn.functional.cross_entropy(self.head(self.norm(x)).float(), ids)

    torch.manual_seed(0)
    model = Net().to(torch.bfloat16)
    for block in model.blocks[: case.frozen_blocks]:
        block.requires_grad_(False)
    if case.freeze_embedding:
        model.embed.requires_grad_(False)
    return model


@contextlib.contextmanager
def allocations() -> Iterator[list[int]]:
    """Signed bytes of every allocation and free of torch's CPU allocator on this thread, in the order in which they happen."""
    from torch._C._profiler import _ExperimentalConfig
    from torch.autograd import ProfilerConfig, ProfilerState, _disable_profiler_legacy, _enable_profiler_legacy

    found: list[int] = []
    # The older profiler keeps a plain list for each thread; the newer one sorts by clock and loses an event now and then.
    _enable_profiler_legacy(ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig()))
    try:
        yield found
    finally:
        threads = _disable_profiler_legacy()
    lists: list[list[int]] = [[e.cpu_memory_usage() for e in events if e.kind() == "memory_alloc"] for events in threads]
    found += sorted(lists, key=len)[-1]


def mark(number: int) -> None:
    import torch

    torch.empty(MARK + number, dtype=torch.uint8)


def sections(events: list[int]) -> list[tuple[int | None, list[int]]]:
    """The bytes in use after every event, cut at the markers: (marker that opens the section, curve)."""
    rows: list[tuple[int | None, list[int]]] = [(None, [0])]
    level = 0
    for size in events:
        if MARK <= size < MARK + 100_000:
            rows.append((size - MARK, [level]))
        elif not MARK <= -size < MARK + 100_000:
            level += size
            rows[-1][1].append(level)
    return rows


def one_rank_trace(case: Case) -> tuple[list[Parameter], list[Moment]]:
    """The parameters, and what the step holds beside weights and finished gradients, cut where DeepSpeed acts."""
    import torch

    model = build(case)
    modules = list(model.modules())
    tensors = list(model.parameters())
    index = {id(tensor): k for k, tensor in enumerate(tensors)}
    module_of = {id(tensor): k for k, m in enumerate(modules) for tensor in m.parameters(recurse=False)}
    parameters = [Parameter(t.numel(), t.requires_grad, module_of[id(t)]) for t in tensors]
    kinds = ("forward", "forward_end", "backward", "backward_end", "grad")

    class Boundary(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, number: int) -> Any:
            ctx.number = number
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            mark(ctx.number)
            return grad, None

    def number_of(kind: str, which: int) -> int:
        return 1000 * kinds.index(kind) + which

    for k, module in enumerate(modules):

        def before(_: Any, args: Any, k: int = k) -> Any:
            mark(number_of("forward", k))
            return tuple(Boundary.apply(a, number_of("backward_end", k)) if a.requires_grad else a for a in args)

        def after(_: Any, args: Any, out: Any, k: int = k) -> Any:
            mark(number_of("forward_end", k))
            return Boundary.apply(out, number_of("backward", k)) if out.requires_grad else out

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
    for tensor in tensors:
        if tensor.requires_grad:
            tensor.register_post_accumulate_grad_hook(lambda t: mark(number_of("grad", index[id(t)])))
    ids = torch.randint(0, case.vocab, (case.tokens,))
    with allocations() as events:
        mark(9000)
        loss = model(ids)
        loss.backward()
        del loss
        mark(9001)
    moments = []
    done = 0
    rows = sections(events)
    level = rows[0][1][-1]
    for (_, curve), (number, following) in itertools.pairwise(rows[1:]):
        assert number is not None
        high, now = max(curve) - level - done, following[0] - level - done
        if number == 9001:
            moments.append(Moment("end", 0, high, now))
            break
        kind, which = kinds[number // 1000], number % 1000
        if kind == "grad":
            done += 2 * parameters[which].elements
            now -= 2 * parameters[which].elements
        moments.append(Moment(kind, which, high, now))  # type: ignore[arg-type]
    return parameters, moments


def train(case: Case) -> dict[str, int]:
    """Bytes that DeepSpeed's rank holds between steps, and its peaks, in the fourth step."""
    import deepspeed
    import torch

    gc.collect()
    model_holder: list[Any] = []
    with allocations() as events:
        model = build(case)
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, foreach=False),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": case.accumulation,
                "gradient_clipping": 1.0,
                "bf16": {"enabled": True},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "zero_optimization": {"stage": case.stage, **(case.settings or {})},
                "steps_per_print": 1_000_000,
            },
        )
        del model
        ids = torch.randint(0, case.vocab, (case.tokens,))
        for step in range(4):
            for _ in range(case.accumulation):
                if step == 3:
                    mark(1)
                loss = engine(ids)
                if step == 3:
                    mark(2)
                engine.backward(loss)
                del loss
                if step == 3:
                    mark(3)
                engine.step()
        mark(4)
    model_holder.append(engine)
    rows = sections(events)
    peaks = {name: max(max(c) for m, c in rows if m == k) for name, k in {"forward": 1, "backward": 2, "step": 3}.items()}
    resident = rows[-1][1][0]
    engine.destroy()
    del engine, model_holder
    gc.collect()
    return {
        "resident_bytes": resident,
        **{f"{name}_bytes": peak for name, peak in peaks.items()},
        "peak_bytes": max(peaks.values()),
    }


def settings_of(case: Case) -> ZeroSettings:
    known = {name.removeprefix("stage3_"): value for name, value in (case.settings or {}).items()}
    return ZeroSettings(
        stage=case.stage,
        ranks=RANKS,
        gradient_accumulation_steps=case.accumulation,
        optimizer_temporary_bytes=8,  # AdamW, one tensor at a time
        **known,
    )


def predict(case: Case, parameters: list[Parameter], moments: list[Moment]) -> dict[str, int]:
    terms = predict_zero(settings_of(case), parameters, moments)
    return {
        "resident_bytes": terms.resident_bytes,
        "forward_bytes": terms.forward_peak_bytes,
        "backward_bytes": terms.backward_peak_bytes,
        "step_bytes": terms.step_peak_bytes,
        "peak_bytes": terms.peak_bytes,
    }


def run_case(case: Case) -> dict[str, Any]:
    predicted, measured = predict(case, *one_rank_trace(case)), train(case)
    return {"case": asdict(case), "measured": measured, "predicted": predicted}


def worst_of_ranks(pair: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """One row a case: the highest figure over ranks, as the prediction gives it."""
    measured = {k: max(row["measured"][k] for row in pair) for k in pair[0]["measured"]}
    predicted = pair[0]["predicted"]
    error = {k.removesuffix("_bytes"): round(predicted[k] / measured[k] - 1, 5) for k in measured}
    return {"case": pair[0]["case"], "measured": measured, "predicted": predicted, "error": error}


class Finished:
    """The work of a collective that is over."""

    def wait(self, *_: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def collectives_outside_the_allocator() -> None:
    """Gives gloo copies in NumPy's memory: its threads would free torch's, and a free on another thread is not recorded."""
    import torch
    import torch.distributed as dist

    def twin(tensor: Any) -> Any:
        raw = tensor.detach().contiguous().view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor.detach()
        return torch.from_numpy(raw.numpy().copy()).view(tensor.dtype)

    def wrapped(real: Any, written: int) -> Any:
        """`real` with every tensor argument replaced; argument `written` is copied back."""

        def call(*args: Any, async_op: bool = False, **kwargs: Any) -> Any:
            named = {k: twin(v) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
            twins = [twin(a) if isinstance(a, torch.Tensor) else a for a in args]
            real(*twins, async_op=False, **named)
            if args:
                args[written].copy_(twins[written])
            else:
                name = next(k for k, v in kwargs.items() if isinstance(v, torch.Tensor))
                kwargs[name].copy_(named[name])
            return Finished() if async_op else None

        return call

    def reduce_scatter(output: Any, input: Any, *args: Any, async_op: bool = False, **kwargs: Any) -> Any:
        whole = twin(input)  # gloo would make a copy for itself, NCCL makes none
        all_reduce(whole, *args, **kwargs)
        output.copy_(whole.view(-1).chunk(dist.get_world_size())[dist.get_rank()])
        return Finished() if async_op else None

    all_reduce = dist.all_reduce
    dist.reduce_scatter_tensor = reduce_scatter
    for name in ("all_reduce", "broadcast", "reduce", "all_gather_into_tensor"):
        setattr(dist, name, wrapped(getattr(dist, name), 0))


def worker(names: list[str], out: Path) -> None:
    """Runs in each rank."""
    import deepspeed
    import torch
    from deepspeed import ops

    # DeepSpeed would compile this all-reduce fast path for minutes; gloo serves without it.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    collectives_outside_the_allocator()
    torch.autograd.set_multithreading_enabled(False)
    deepspeed.init_distributed("gloo")
    cases = {case.name: case for case in (*FRESH, *DEVELOPMENT)}
    rows = [run_case(cases[name]) for name in names]
    out.with_suffix(f".{os.environ['RANK']}").write_text(json.dumps(rows), encoding="utf-8")


def launch(
    names: list[str], scratch: Path, timeout: float = 900.0, program: Path = Path(__file__)
) -> list[list[dict[str, Any]]]:
    """Runs the cases of a benchmark on two ranks; the rows of each rank.

    Raises:
        RuntimeError: a rank failed; its last lines are in the message.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = scratch / "rows.json"
    processes = []
    for rank in range(RANKS):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(RANKS),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        command = [sys.executable, str(program), "--rank", "--out", str(out), *[a for n in names for a in ("--only", n)]]
        log = (scratch / f"rank{rank}.log").open("w")
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    if any(codes):
        tails = "\n".join((scratch / f"rank{r}.log").read_text()[-3000:] for r in range(RANKS))
        raise RuntimeError(f"a rank failed: {codes}\n{tails}")
    return [json.loads(out.with_suffix(f".{rank}").read_text()) for rank in range(RANKS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="name of a case (default: the fresh ones)")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.only or [case.name for case in FRESH]
    if arguments.rank:
        worker(names, arguments.out)
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = [worst_of_ranks(pair) for pair in zip(*launch(names, Path(scratch)), strict=True)]
    for row in rows:
        print(f"{row['case']['name']:22}", {k: f"{100 * v:+.2f} %" for k, v in row["error"].items()})
    if not arguments.no_write:
        STORED.parent.mkdir(exist_ok=True)
        STORED.write_text(json.dumps(record(rows), indent=1) + "\n", encoding="utf-8")


def record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    import deepspeed
    import torch

    worst = {k: max((abs(row["error"][k]) for row in rows), default=None) for k in ("resident", "peak")}
    return {
        "what": "bytes of torch's CPU allocator in a rank of real DeepSpeed (measured) against predict.zero (predicted)",
        "ranks": RANKS,
        "versions": {"deepspeed": deepspeed.__version__, "torch": torch.__version__},
        "worst_absolute_error": worst,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
