"""Several real processes that run one program, as a launcher starts them."""

import os
import socket
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def launch(size, *arguments, expected=0, **environment):
    """The outputs of `size` processes that run Python with these arguments, over gloo on the CPU.

    Arguments:
        size: Number of processes.
        arguments: Arguments of the interpreter.
        expected: The exit code of every process, or None if each may have another.
        environment: Further variables of the environment.
    """

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    paths = [HERE, *filter(None, sys.path)]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [process.communicate(timeout=300) for process in running]
    for process, (_, err) in zip(running, outputs, strict=True):
        assert expected in (None, process.returncode), err
    return [(process.returncode, *output) for process, output in zip(running, outputs, strict=True)]
