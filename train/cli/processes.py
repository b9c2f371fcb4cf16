"""The options that say which of several processes this one is."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from ..distributed.rendezvous import ProcessSpec

AUTO = "auto"


def add_place(made: argparse.ArgumentParser) -> None:
    """Adds them to a command's."""
    group = made.add_argument_group("several processes, the same command in each")
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="of process 0; or auto: TPU pods, GKE, Slurm and MPI say everything themselves",
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    group.add_argument(
        "--join-timeout", type=float, default=300, metavar="SECONDS", help="wait so long for all"
    )


@contextmanager
def joined_as_told(args: argparse.Namespace) -> Iterator["Console"]:
    """Joins the other processes, if there are any; one of all has a console that speaks.

    Raises:
      UserError: where the options do not fit together, or not all processes come.
    """
    from rich.console import Console

    if args.coordinator is None:
        if (args.processes, args.process) != (None, None):
            raise UserError("--processes and --process need --coordinator HOST:PORT")
        yield Console()
        return
    place = find_place(args)
    from ..distributed.processes import is_main_process, process_group

    with process_group(place, args.join_timeout):
        yield Console(quiet=not is_main_process())


def find_place(args: argparse.Namespace) -> "ProcessSpec | None":
    """What the options say; None: jax is to find it out.

    Raises:
      UserError: where they do not fit together.
    """
    numbers = (args.processes, args.process)
    if args.coordinator == AUTO:
        if numbers != (None, None):
            raise UserError("--coordinator auto finds --processes and --process; leave them out")
        return None
    from ..distributed.rendezvous import ProcessSpec

    host, _, port = args.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator: must be HOST:PORT or auto, got {args.coordinator!r}")
    if None in numbers:
        raise UserError("--coordinator HOST:PORT needs --processes N and --process I")
    if not 0 <= args.process < args.processes:
        raise UserError(
            f"--process: must be from 0 up to {args.processes - 1} (--processes - 1), "
            f"got {args.process}"
        )
    return ProcessSpec(host.strip("[]"), int(port), args.processes, args.process)
