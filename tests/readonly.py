"""A folder that may only be read, for tests; root too."""

import contextlib
import os
import subprocess

import pytest


@contextlib.contextmanager
def only_readable(folder):
    """The folder can be read and not written meanwhile, also by root; skips where that cannot be arranged."""
    if os.geteuid() == 0:
        for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]):
            if subprocess.run(command, capture_output=True).returncode:
                pytest.skip("nothing may be mounted here, and nothing is read-only to root")
    else:
        folder.chmod(0o500)
    try:
        yield
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", folder], check=True)
        else:
            folder.chmod(0o700)
