"""Python in processes of its own, one or several that train together."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def torchrun():
    """What starts a command in two processes."""
    return ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", _free_port()]


def accelerate_launch(home):
    """The same by `accelerate launch`, which leaves several processes on a CPU to MPI."""
    hosts = home / "hosts"
    hosts.write_text("localhost:2\n")
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--num_processes", "2"]
    return [*launcher, "--mpirun_hostfile", str(hosts), "--main_process_port", _free_port()]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(home, launcher, arguments, timeout, **environment):
    """Run `python ARGUMENTS` in `home` by a launcher, [] or one of those here, one thread a process."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"HF_HOME": str(home), "OMP_NUM_THREADS": "1", "PATH": programs, **environment}
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
