"""The command line. Nothing heavy is imported before a command runs: `--help` answers at once."""

from __future__ import annotations

import os
import sys

import click

from stylize import __version__
from stylize.cli.apply import apply
from stylize.cli.check_data import check_data
from stylize.cli.evaluate import evaluate
from stylize.cli.import_model import import_model
from stylize.cli.info import info
from stylize.cli.kinds import list_kinds
from stylize.cli.messages import show_every_name, show_log
from stylize.cli.optimize import optimize
from stylize.cli.study import study
from stylize.cli.sweep import sweep
from stylize.cli.train import train
from stylize.errors import StylizeError, reason_of, shown
from stylize.system.threads import let_waiting_threads_sleep


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stylize")
def cli() -> None:
    """Train fast style-transfer models, and paint photographs with them."""


for command in (train, apply, optimize, evaluate, study, sweep, import_model, info, list_kinds, check_data):
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit: 0 done, 1 the user can mend it, 2 wrong usage, 130 interrupted."""
    let_waiting_threads_sleep()
    show_every_name()
    show_log()
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except StylizeError as error:
        print(f"stylize: {' '.join(str(error).split())}", file=sys.stderr)
        status = 1
    except OSError as error:  # of a path that no command has looked at itself
        place = "" if error.filename is None else f"{shown(os.fsdecode(error.filename))}: "
        print(f"stylize: {place}{shown(reason_of(error))}", file=sys.stderr)
        status = 1
    except (KeyboardInterrupt, click.Abort):
        print("stylize: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status if isinstance(status, int) else 0)
