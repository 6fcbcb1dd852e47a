"""Kernels that are forked from one process that has imported PyTorch, pandas and SciPy already.

Every page needs them, and to import them takes six seconds. Only packages of others are imported
there, so that no page gets by without an import of its own, and nothing is computed before a fork.
"""

import multiprocessing
import os
from multiprocessing.process import BaseProcess
from typing import Any

from jupyter_client.manager import AsyncKernelManager

# `__main__`, or every kernel would import the program that builds the book; PyTorch's compiler,
# which the first optimiser of a process loads.
PRELOADED = [
    "__main__",
    "ipykernel.kernelapp",
    "torch._dynamo",
    "pandas",
    "scipy.stats",
    "matplotlib.figure",
]


class ForkedKernels(AsyncKernelManager):
    """Starts kernels so, on Linux; elsewhere PyTorch does not bear a fork."""

    async def _async_launch_kernel(self, kernel_cmd: list[str], **how: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        child = context.Process(target=serve, args=(self.connection_file, how["cwd"], how["env"]))
        child.start()
        self.provisioner.process = Child(child)
        self.provisioner.pid = self.provisioner.pgid = child.pid


class Child:
    """A process of `multiprocessing` with those methods of one of `subprocess` that are called."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess) -> None:
        self.process = process

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.process.exitcode

    def wait(self) -> int | None:
        """Wait for its end; its exit status."""
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)


def serve(connection_file: str, folder: str, environment: dict[str, str]) -> None:
    """Be the kernel of a connection file, until it is shut down or the build is gone."""
    import matplotlib
    from ipykernel.kernelapp import IPKernelApp

    # it is imported before the kernel can ask for pictures in the notebook
    matplotlib.use("module://matplotlib_inline.backend_inline")
    os.setsid()
    os.environ.update(environment)
    os.chdir(folder)
    IPKernelApp.launch_instance(argv=["-f", connection_file], parent_handle=os.getppid())
