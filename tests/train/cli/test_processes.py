"""The options of several processes fit together or are refused."""

import argparse

import pytest

from train.cli.processes import add_process_options, join_processes, read_process_spec
from train.distributed.rendezvous import ProcessSpec
from train.errors import UserError


def _args(options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_process_options(parser)
    return parser.parse_args(options.split())


def test_without_options_this_is_the_only_process() -> None:
    with join_processes(_args("")) as console:
        assert not console.quiet


@pytest.mark.parametrize(
    ("address", "spec"),
    [
        ("host:8476", ProcessSpec("host", 8476, num_processes=4, process_id=3)),
        ("[::1]:65535", ProcessSpec("::1", 65535, num_processes=4, process_id=3)),
    ],
)
def test_the_options_name_one_of_several_processes(address: str, spec: ProcessSpec) -> None:
    options = f"--coordinator-address {address} --num-processes 4 --process-id 3"
    assert read_process_spec(_args(options)) == spec


def test_auto_leaves_the_detection_to_jax() -> None:
    assert read_process_spec(_args("--coordinator-address auto")) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--process-id 1", "--num-processes and --process-id need --coordinator-address HOST:PORT"),
        ("--coordinator-address here", "must be HOST:PORT or auto, got 'here'"),
        ("--coordinator-address here:x --num-processes 2 --process-id 0", "must be HOST:PORT"),
        ("--coordinator-address here:65536", "must be HOST:PORT or auto"),
        ("--coordinator-address :1", "must be HOST:PORT or auto"),
        ("--coordinator-address here:1", "needs --num-processes N and --process-id I"),
        ("--coordinator-address here:1 --num-processes 2 --process-id 2", "must be from 0 to 1"),
        ("--coordinator-address here:1 --num-processes 2 --process-id -1", "must be from 0 to 1"),
        ("--coordinator-address auto --process-id 1", "leave them out"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: str, message: str) -> None:
    with pytest.raises(UserError, match=message), join_processes(_args(options)):
        pass
