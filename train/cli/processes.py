"""The options that place this process among several, and joining the others."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from ..distributed.rendezvous import ProcessSpec

AUTO = "auto"


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a command."""
    group = parser.add_argument_group("several processes, with the same command in each")
    group.add_argument(
        "--coordinator-address",
        metavar="HOST:PORT",
        help="address of process 0; or auto, where TPU pods, GKE, Slurm and MPI give all three",
    )
    group.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process-id", type=int, metavar="I", help="this process's number, from 0")
    group.add_argument(
        "--join-timeout",
        type=float,
        default=300,
        metavar="SECONDS",
        help="time to wait for all processes to start (default: 300)",
    )


@contextmanager
def join_processes(args: argparse.Namespace) -> Iterator["Console"]:
    """Joins the other processes, if there are any; yields a console, silent in all but process 0.

    Raises:
      UserError: if the options do not fit together, or not all processes start.
    """
    from rich.console import Console

    if args.coordinator_address is None:
        if (args.num_processes, args.process_id) != (None, None):
            raise UserError("--num-processes and --process-id need --coordinator-address HOST:PORT")
        yield Console()
        return
    spec = read_process_spec(args)
    from ..distributed.processes import is_main_process, process_group

    with process_group(spec, args.join_timeout):
        yield Console(quiet=not is_main_process())


def read_process_spec(args: argparse.Namespace) -> "ProcessSpec | None":
    """Returns what the options say, or None if jax is to detect it.

    Raises:
      UserError: if the options do not fit together.
    """
    address, count, index = args.coordinator_address, args.num_processes, args.process_id
    if address == AUTO:
        if (count, index) != (None, None):
            raise UserError(
                "--coordinator-address auto finds --num-processes and --process-id; leave them out"
            )
        return None
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator-address must be HOST:PORT or auto, got {address!r}")
    if count is None or index is None:
        raise UserError(
            "--coordinator-address HOST:PORT needs --num-processes N and --process-id I"
        )
    if not 0 <= index < count:
        raise UserError(
            f"--process-id must be from 0 to {count - 1} with --num-processes {count}, got {index}"
        )
    from ..distributed.rendezvous import ProcessSpec

    return ProcessSpec(host.strip("[]"), int(port), count, index)
