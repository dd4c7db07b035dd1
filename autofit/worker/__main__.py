"""`python -m autofit.worker VERB ...` or, without autofit installed, `python .../autofit/worker/__main__.py VERB ...`.

Verbs: `run SPEC.json` (also without the word), `serve SPEC.json` (runs many like that one), `trace SPEC.json` (`trace -
PROCESSES SECONDS` for many), `profile ORDER.json OUT`, `probe`; `rank SPEC.json` is what `run` starts.
Started by path, the file makes `autofit.worker` importable on its own: no folder with other packages joins `sys.path`.
"""

import sys
from pathlib import Path
from types import ModuleType

USAGE = (
    "usage: autofit.worker [run] SPEC.json | serve SPEC.json | trace SPEC.json | trace - PROCESSES SECONDS"
    " | profile ORDER.json OUT | probe"
)
_VERBS = {"run", "rank", "serve", "trace", "profile", "probe"}


def _make_importable() -> None:
    """Registers a bare `autofit` package, and takes this folder (first on the path of a script) off `sys.path`.

    The folder must go because its `engines/transformers.py`-like names could shadow the real libraries.
    """
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    if "autofit" not in sys.modules:
        package = ModuleType("autofit")
        package.__path__ = [str(here.parent)]
        sys.modules["autofit"] = package


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 1 the trial did not complete, 2 usage or an unreadable spec."""
    verb, rest = (argv[0], argv[1:]) if argv and argv[0] in _VERBS else ("run", argv)
    if verb in {"trace", "profile", "probe"}:
        return _asked(verb, rest)
    if len(rest) != 1 or rest[0].startswith("-"):
        sys.stderr.write(f"{USAGE}\n")
        return 2
    from autofit.worker.order import OrderError, read_order

    try:
        order = read_order(Path(rest[0]))
    except OrderError as error:
        sys.stderr.write(f"autofit.worker: {error}\n")
        return 2
    if verb == "serve":
        from autofit.worker.server import serve

        return serve(order)
    if verb == "rank" or _under_torchrun():
        from autofit.worker.rank import run_rank

        return run_rank(order)
    from autofit.worker.supervisor import rank_command, spawned, supervise

    return supervise(order, spawned(rank_command(order)))


def _asked(verb: str, rest: list[str]) -> int:
    """The verbs that answer a question and train nothing."""
    if verb == "trace":
        from autofit.worker.trace import main as trace

        return int(trace(rest))
    if verb == "profile":
        from autofit.worker.profile import main as profile

        return profile(rest)
    from autofit.worker.probe import main as probe

    return probe()


def _under_torchrun() -> bool:
    """Whether somebody else (torchrun) started this process as one rank of a job."""
    import os

    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


if __name__ == "__main__":
    if not __package__:
        _make_importable()
    sys.exit(main(sys.argv[1:]))
