"""Ray: the cluster, the processes on it, and what goes wrong there, in this package's words.

Nothing else on this floor or above imports Ray. What runs in a process of the cluster is a plain object that a factory
makes there; its methods are called by name, and what it raises comes back as a value.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..export.errors import DeviceError, UsageError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # reports to Ray's makers what runs here
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of how later versions will behave
ray: Any = None
"""None where the extra `ray` is not installed; whoever asks for workers is told before."""
exceptions: Any = None
if find_spec("ray"):
    import ray
    from ray import exceptions

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""How often the head is looked at."""
HEAD_SECONDS = 5.0
"""How long the head may not answer before it is taken for dead."""
NAMESPACE = "bbt-fast"


class WorkerLostError(DeviceError):
    """A process of the cluster died, or its node did."""


class HeadLostError(DeviceError):
    """The cluster itself is gone."""


class Raised:
    """What a call in a process of the cluster raised."""

    def __init__(self, error: BaseException) -> None:
        """Take it."""
        self.error = error


@dataclass(frozen=True)
class Share:
    """What one process of the cluster gets."""

    gpus: int
    cpus: int
    """Also how many threads it computes with."""


class Host:
    """A process of the cluster; holds one object."""

    def __init__(self, threads: int, cache: str | None) -> None:
        """Set what belongs to the process, before anything is loaded."""
        import torch

        if cache is not None:
            os.environ["BBT_FAST_CACHE"] = cache
        torch.set_num_threads(threads)
        self._held: Any = None

    def make(self, factory: Callable[..., Any], *args: Any) -> Any:
        """Make the object; return what its ``facts`` says."""
        try:
            self._held = factory(*args)
            return self._held.facts()
        except BaseException as error:  # noqa: BLE001 - it is raised where the object was asked for
            return Raised(error)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the object."""
        try:
            return getattr(self._held, method)(*args)
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer was asked for
            return Raised(error)


def fetch(reference: Any) -> Any:
    """Return what a reference from ``Cluster.put`` stands for; in a process of the cluster."""
    return ray.get(reference)


class Cluster:
    """A Ray cluster that this process uses, and ends if it started it."""

    def __init__(self, address: str | None, workers: int, threads: int) -> None:
        """Start a cluster of this machine, or join one.

        Args:
            address: "auto", or host:port of a head; None starts a cluster for ``workers`` processes.
            workers: how many there will be.
            threads: of this machine's CPU, for them to share out.

        Raises:
            UsageError: if there is no cluster at the address.
        """
        self._threads = threads
        self.own = address is None and not ray.is_initialized()
        self._joined = not ray.is_initialized()
        if self._joined:
            self._connect(address, max(workers, threads))
        self.head = ray.get_runtime_context().gcs_address
        self._silent_since: float | None = None
        self._seen = time.monotonic()
        self._node_socket = str(ray._private.worker.global_worker.node.raylet_socket_name)
        self._handles: list[Any] = []
        self.dead = False
        """Whether the head was found dead."""

    def _connect(self, address: str | None, cpus: int) -> None:
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": NAMESPACE}
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM) if main else None
        try:
            if address is None:
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
            else:
                if address != "auto":
                    self._reach(address)  # at once; Ray tries for minutes
                found = ray.init(address=address, **quiet)
                if found.dashboard_url:
                    logger.info("the dashboard of the Ray cluster is at http://%s", found.dashboard_url)
            _hush()
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UsageError(
                f"--ray_address {address} leads to no Ray cluster that can be joined ({first}). Start one with `ray "
                "start --head`, or leave the flag out: a cluster of this machine is then started for the run."
            ) from None
        finally:
            if main:  # Ray has put its own in its place
                signal.signal(signal.SIGTERM, before)

    def share(self, workers: int, device: str) -> Share:
        """Return what each of so many processes gets: a GPU where the cluster has some, or a share of the CPUs.

        Args:
            workers: how many.
            device: what a user asked for: auto, cpu, cuda.

        Raises:
            DeviceError: if CUDA was asked for and the cluster has no GPU.
        """
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        if device.startswith("cuda") and not gpus:
            raise DeviceError(
                "--device cuda with --workers needs a Ray cluster with GPUs, and this one has none. See what "
                "`ray status` lists, or use --device cpu."
            )
        if gpus and device != "cpu":
            return Share(1, 1)
        return Share(0, max(1, (self._threads if self.own else cpus) // workers))

    def room(self, share: Share) -> int:
        """Return how many such processes the cluster can hold now, counting those that are there."""
        resources = ray.available_resources()
        room = int(resources.get("CPU", 0)) // share.cpus
        if share.gpus:
            room = min(room, int(resources.get("GPU", 0)) // share.gpus)
        return room

    def spawn(self, share: Share, lanes: int = 1) -> Any:
        """Ask for a process; it begins once there is room.

        Args:
            share: what it gets.
            lanes: how many calls it takes at a time.
        """
        kind: Any = ray.remote(Host)
        self._require_node()
        placed = kind.options(num_cpus=share.cpus, num_gpus=share.gpus, max_concurrency=lanes)
        handle = placed.remote(share.cpus, os.environ.get("BBT_FAST_CACHE"))
        self._handles.append(handle)
        return handle

    def put(self, value: Any) -> Any:
        """Lay a value where all processes of the cluster reach it; return a reference to it."""
        self._require_node()
        try:
            return ray.put(value)
        except _no_head() as error:
            raise self._headless(error) from None

    def wait(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        """Return the calls that have ended, after so many seconds at the latest.

        Raises:
            HeadLostError: if the cluster is gone.
        """
        self._require_node()
        if time.monotonic() > self._seen + CHECK_SECONDS:
            self.check()
        try:
            ready, _ = ray.wait(list(futures), num_returns=1, timeout=seconds)
            if len(futures) > 1 and ready:
                ready, _ = ray.wait(list(futures), num_returns=len(futures), timeout=0)
        except _no_head() as error:
            raise self._headless(error) from None
        self._require_node()
        return list(ready)

    def result(self, future: Any) -> Any:
        """Return what an ended call returned.

        Raises:
            WorkerLostError: if the process died.
            HeadLostError: if the cluster is gone.
            BaseException: what the call raised.
        """
        try:
            value = ray.get(future)
        except _lost() as error:
            self._require_node()
            self.check()
            raise WorkerLostError(_first_line(error)) from None
        except _no_head() as error:
            raise self._headless(error) from None
        if isinstance(value, Raised):
            raise value.error
        return value

    def check(self) -> None:
        """Make sure that the head is there.

        Raises:
            HeadLostError: if it has not answered for a while.
        """
        while True:
            try:
                self._reach(self.head)
                self._silent_since, self._seen = None, time.monotonic()
                return
            except OSError as error:
                refused = isinstance(error, ConnectionRefusedError)
                self._silent_since = self._silent_since or time.monotonic()
                if refused and time.monotonic() - self._silent_since > HEAD_SECONDS / 5:
                    raise self._headless(error) from None
                if time.monotonic() - self._silent_since > HEAD_SECONDS:
                    raise self._headless(error) from None
                time.sleep(0.1)

    def _require_node(self) -> None:
        """Make sure that Ray's part on this machine is there: any call to it ends this process if it is not.

        Raises:
            HeadLostError: if it is gone.
        """
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self._node_socket)
            except OSError as error:
                raise self._headless(error) from None

    def _reach(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not port.isdecimal():
            raise ValueError("it must be auto, or such as 10.0.0.1:6379")
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()

    def kill(self, handle: Any) -> None:
        """End a process, whether it answers or not."""
        self._require_node()
        try:
            ray.kill(handle)
        except (exceptions.RayError, ConnectionError, ValueError):
            logger.debug("a process of the cluster was gone before it was ended")
        self._handles = [one for one in self._handles if one is not handle]

    def close(self) -> None:
        """End the processes, and the cluster if it is our own."""
        for handle in [] if self.dead else list(self._handles):
            self.kill(handle)
        self._handles = []
        if self._joined and ray.is_initialized() and not self.dead:
            ray.shutdown()

    def _headless(self, error: BaseException) -> HeadLostError:
        if not self.dead:
            self.dead = True
            atexit.register(_leave)
        return HeadLostError(
            f"the head of the Ray cluster, {self.head}, is gone ({_first_line(error)}). A run keeps every generation "
            "that it finished: start the cluster again, and the same command continues from there."
        )


def _no_head() -> tuple[type[BaseException], ...]:
    """Return the errors that mean that the cluster is gone."""
    return exceptions.LocalRayletDiedError, exceptions.RpcError, ConnectionError


def _lost() -> tuple[type[BaseException], ...]:
    """Return the errors that mean that a process or its node is gone."""
    e = exceptions
    return e.RayActorError, e.WorkerCrashedError, e.ObjectLostError, e.NodeDiedError


def _leave() -> None:
    """End the process here: at its ordinary end Ray, without its cluster, would crash it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _hush() -> None:
    """Have what Ray prints about lost processes logged: results are printed where it would stand, and we say it."""

    def log(data: dict[str, Any], ignore_prefix: bool) -> None:
        del ignore_prefix
        for line in data.get("lines", ()):
            logger.debug("Ray: %s", line)

    ray._private.worker.print_to_stdstream = log  # `log_to_driver` does not reach it in Ray 2.60


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
