"""What leaves this machine: a run's config and texts without secrets, and the code's revision."""

import os
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jax

import gmt_jax

_HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"token(?!iz|s\b|s_)|secret|passw|credential|access_?key|api_?key|_key$", re.I
)
# Tokens of common services, as they write them, and a password in an address.
_SECRET_TEXT = re.compile(
    r"\b(hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|AKIA)[A-Za-z0-9_-]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def redact(value: Any) -> Any:
    """A value without secrets and without the path of the user's home.

    Hidden are values under a name such as `api_key`, tokens of known forms, passwords in addresses,
    and what the environment holds under such a name.
    """
    if isinstance(value, Mapping):
        return {
            key: _HIDDEN if item and _SECRET_NAME.search(str(key)) else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if not isinstance(value, str):
        return value
    for name, secret in os.environ.items():
        if len(secret) >= 8 and _SECRET_NAME.search(name):
            value = value.replace(secret, _HIDDEN)
    value = _SECRET_TEXT.sub(_HIDDEN, value)
    home = os.path.expanduser("~")  # Which is ~ where there is none.
    return re.sub(rf"{re.escape(home)}(?=/|$)", "~", value) if len(home) > 1 else value


def describe_code() -> dict[str, str]:
    """The revision of the repository in the working folder, if it is one; versions and devices."""
    packages = ("jax", "flax", "optax")
    facts = {"gmt_jax": gmt_jax.__version__} | {name: version(name) for name in packages}
    facts["devices"] = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    if revision := _git("rev-parse", "HEAD"):
        changed = _git("status", "--porcelain", "--untracked-files=no")
        facts["git_revision"] = revision + (" with changes" if changed else "")
    return facts


def _git(*args: str) -> str:
    command = ["git", "-c", "core.fsmonitor=false", *args]
    try:
        found = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
