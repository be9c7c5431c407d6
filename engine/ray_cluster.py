"""The Ray cluster and its processes, with Ray's errors translated into this package's.

No other module imports Ray. A process of the cluster holds one plain object, which a factory creates there. Its methods
are called by name, and its exceptions are returned as values.
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

from ..export.errors import DeviceError, UsageError, first_line
from .faults import WorkerLostError
from .sharing import largest_share

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports to Ray's developers
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # avoids a warning about later versions
ray: Any = None
"""None if the extra `ray` is not installed; the command line checks that before."""
exceptions: Any = None
if find_spec("ray"):
    import ray
    from ray import exceptions

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""The interval of checks of the head."""
HEAD_SECONDS = 5.0
"""The head counts as dead if it has not answered for this time."""
NAMESPACE = "bbt-fast"


class HeadLostError(DeviceError):
    """The cluster itself is lost."""


@dataclass(frozen=True)
class Raised:
    """The exception of a call in a process of the cluster."""

    error: BaseException


@dataclass(frozen=True)
class Share:
    """The resources of one process of the cluster."""

    gpus: int
    cpus: int
    """Also its number of threads."""


class Host:
    """A process of the cluster; it holds one object."""

    def __init__(self, threads: int, cache: str | None) -> None:
        """Configure the process before anything is loaded."""
        import torch

        if cache is not None:
            os.environ["BBT_FAST_CACHE"] = cache
        torch.set_num_threads(threads)
        self._held: Any = None

    def make(self, factory: Callable[..., Any], *args: Any) -> Any:
        """Create the object and return its ``facts``."""
        try:
            self._held = factory(*args)
            return self._held.facts()
        except BaseException as error:  # noqa: BLE001 - Cluster.result() raises it in the caller's process
            return Raised(error)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the object."""
        try:
            return getattr(self._held, method)(*args)
        except BaseException as error:  # noqa: BLE001 - Cluster.result() raises it in the caller's process
            return Raised(error)


def fetch(reference: Any) -> Any:
    """Return the value of a reference from ``Cluster.put``; for processes of the cluster."""
    return ray.get(reference)


class Cluster:
    """A connection to a Ray cluster; a cluster that it started ends with it."""

    def __init__(self, address: str | None, workers: int, threads: int) -> None:
        """Start a cluster on this machine, or join one.

        Args:
            address: "auto", or host:port of a head; None starts a cluster for ``workers`` processes.
            workers: the number of processes.
            threads: CPU threads of this machine for the processes.

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
        """Whether the head is lost."""

    def _connect(self, address: str | None, cpus: int) -> None:
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": NAMESPACE}
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM) if main else None
        try:
            if address is None:
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
            else:
                if address != "auto":
                    self._reach(address)  # fails at once; Ray would retry for minutes
                found = ray.init(address=address, **quiet)
                if found.dashboard_url:
                    logger.info("the dashboard of the Ray cluster is at http://%s", found.dashboard_url)
            _hush()
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"--ray_address {address} leads to no Ray cluster that can be joined ({first_line(error)}). Start one "
                "with `ray start --head`, or omit the flag to start a cluster on this machine for the run."
            ) from None
        finally:
            if main:  # Ray has replaced it
                signal.signal(signal.SIGTERM, before)

    def share(self, workers: int, device: str) -> Share:
        """Return the resources of each process: one GPU if the cluster has GPUs, or else a share of the CPUs.

        Args:
            workers: the number of processes.
            device: the requested device: auto, cpu or cuda.

        Raises:
            DeviceError: if CUDA is requested and the cluster has no GPU.
        """
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if device.startswith("cuda") and not gpus:
            raise DeviceError(
                "--device cuda with --workers needs a Ray cluster with GPUs, and this one has none. Check "
                "`ray status`, or use --device cpu."
            )
        if gpus and device != "cpu":
            return Share(1, 1)
        cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        return Share(0, largest_share([self._threads] if self.own else cpus, workers))

    def room(self, share: Share) -> int:
        """Return how many such processes the cluster can start now."""
        room = 0
        for free in ray._private.state.available_resources_per_node().values():
            cpus = int(free.get("CPU", 0)) // share.cpus
            room += min(cpus, int(free.get("GPU", 0)) // share.gpus) if share.gpus else cpus
        return room

    def spawn(self, share: Share, lanes: int = 1) -> Any:
        """Request a process; it starts once the cluster has room.

        Args:
            share: its resources.
            lanes: its number of concurrent calls.
        """
        kind: Any = ray.remote(Host)
        self._require_node()
        placed = kind.options(num_cpus=share.cpus, num_gpus=share.gpus, max_concurrency=lanes)
        handle = placed.remote(share.cpus, os.environ.get("BBT_FAST_CACHE"))
        self._handles.append(handle)
        return handle

    def put(self, value: Any) -> Any:
        """Put a value into the cluster's memory and return a reference to it."""
        self._require_node()
        try:
            return ray.put(value)
        except _no_head() as error:
            raise self._headless(error) from None

    def wait(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        """Wait for the first calls to end, up to a timeout in seconds; return all that have ended.

        Raises:
            HeadLostError: if the cluster is lost.
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
        """Return the result of an ended call.

        Raises:
            WorkerLostError: if the process died.
            HeadLostError: if the cluster is lost.
            BaseException: the exception of the call.
        """
        try:
            value = ray.get(future)
        except _lost() as error:
            self._require_node()
            self.check()
            raise WorkerLostError(first_line(error)) from None
        except _no_head() as error:
            raise self._headless(error) from None
        if isinstance(value, Raised):
            raise value.error
        return value

    def check(self) -> None:
        """Check that the head answers.

        Raises:
            HeadLostError: if it has not answered for HEAD_SECONDS.
        """
        while True:
            try:
                self._reach(self.head)
                self._silent_since, self._seen = None, time.monotonic()
                return
            except OSError as error:
                limit = HEAD_SECONDS / 5 if isinstance(error, ConnectionRefusedError) else HEAD_SECONDS
                self._silent_since = self._silent_since or time.monotonic()
                if time.monotonic() - self._silent_since > limit:
                    raise self._headless(error) from None
                time.sleep(0.1)

    def _require_node(self) -> None:
        """Check that Ray's process on this machine (the raylet) runs; otherwise any call to Ray would end this process.

        Raises:
            HeadLostError: if it is lost.
        """
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self._node_socket)
            except OSError as error:
                raise self._headless(error) from None

    def _reach(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not port.isdecimal():
            raise ValueError("it must be auto or an address such as 10.0.0.1:6379")
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()

    def kill(self, handle: Any) -> None:
        """Kill a process."""
        self._require_node()
        try:
            ray.kill(handle)
        except (exceptions.RayError, ConnectionError, ValueError):
            logger.debug("a process of the cluster had ended before it was killed")
        self._handles = [one for one in self._handles if one is not handle]

    def close(self) -> None:
        """End the processes, and the cluster if this object started it."""
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
            f"the head of the Ray cluster, {self.head}, is lost ({first_line(error)}). Every finished generation is "
            "saved: restart the cluster, then run the same command again to resume."
        )


def _no_head() -> tuple[type[BaseException], ...]:
    """Return Ray's errors for a lost cluster."""
    return exceptions.LocalRayletDiedError, exceptions.RpcError, ConnectionError


def _lost() -> tuple[type[BaseException], ...]:
    """Return Ray's errors for a lost process or node."""
    e = exceptions
    return e.RayActorError, e.WorkerCrashedError, e.ObjectLostError, e.NodeDiedError


def _leave() -> None:
    """End the process at once: without its cluster, Ray would crash it during the normal exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _hush() -> None:
    """Log Ray's messages about lost processes instead of printing them; the pool logs its own."""

    def log(data: dict[str, Any], ignore_prefix: bool) -> None:
        del ignore_prefix
        for line in data.get("lines", ()):
            logger.debug("Ray: %s", line)

    ray._private.worker.print_to_stdstream = log  # `log_to_driver` has no effect on it in Ray 2.60
