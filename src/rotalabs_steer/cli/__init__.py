"""The command line: `rotalabs-steer VERB`."""

import sys


def main() -> None:
    """Entry point of the `rotalabs-steer` command."""
    from rotalabs_steer.errors import SteeringError, missing_dependency

    try:
        from rotalabs_steer.cli.app import app
    except ImportError as error:
        if isinstance(error, SteeringError) or (error.name or "").startswith("rotalabs_steer"):
            raise
        sys.exit(str(missing_dependency("The command line", "cli", error)))
    app()
