"""Python in processes of its own, one or several that train together."""

import os
import socket
import subprocess
import sys


def torchrun():
    """What starts a command in two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]


def launch(home, launcher, arguments, timeout, **environment):
    """Run `python ARGUMENTS` in `home` by a launcher, [] or `torchrun()`, one thread a process."""
    own = {"HF_HOME": str(home), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *launcher, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=home,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
