"""The command `autofit`: each function parses, makes one library call and prints."""


def main() -> int:
    """What the console script runs. Returns the exit status."""
    from autofit.cli.app import main as run

    return run()
