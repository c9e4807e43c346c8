"""The process that `andthen serve` is: it holds the sockets, keeps the engine and the workers alive, and ends them in
order. Knows no request.

Where one worker is enough, it serves HTTP itself, by the same code.

Exit codes: 0 it was told to stop and did; 1 the engine can't start with these settings; 130 it was interrupted twice
and stopped at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
import uvloop

from andthen.books.hub import Hub
from andthen.books.store import open_store
from andthen.config import Config
from andthen.descriptors import log_none_left, means_none_left
from andthen.engine import process as engine_process
from andthen.engine.client import EngineClient
from andthen.engine.pulse import Pulse, Watch
from andthen.gateway.settings import FIRST_PORT, LAST_PORT
from andthen.ledger.recovery import new_lease_owner
from andthen.observability import logs, metrics
from andthen.reload import Control, NotReloaded, check_live, live_settings
from andthen.run_dir import run_dir
from andthen.server import worker
from andthen.server.renewal import offered

EXIT_STOPPED = 0
EXIT_ENGINE_CANNOT_START = 1
EXIT_INTERRUPTED_TWICE = 130

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 30.0
_HEALTHY_S = 60.0
"""Who lived so long is started again at once, however often its like died before."""
_ENGINE_STOP_S = 5.0
_WORKER_GRACE_S = 10.0
"""What a worker may take beyond the drain's bound, before it is killed."""
_BACKLOG = 2048
_STDERR = 2

_LOG = structlog.get_logger("andthen.supervisor")


class CannotListen(Exception):
    """The address can't be had; the message names the remedy."""


def bind(host: str, port: int | None) -> socket.socket:
    """The listening socket, before anything else is done. Connections wait in it until someone accepts.

    Args:
        port: None tries 8000, then the next up to 8019.

    Raises:
        CannotListen
    """
    ports = [port] if port is not None else list(range(FIRST_PORT, LAST_PORT + 1))
    for candidate in ports:
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except socket.gaierror as error:
            raise CannotListen(f"{host!r} is no address of this machine: choose another --host") from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise CannotListen(
                    f"can't listen on {host} port {candidate} ({error.strerror}): choose another --host or --port"
                ) from error
    if port is not None:
        raise CannotListen(f"port {port} of {host} is taken: stop what listens there, or choose another --port")
    raise CannotListen(f"the ports {FIRST_PORT} to {LAST_PORT} of {host} are all taken: name a free one with --port")


def serve(
    config: Config,
    listening: socket.socket,
    on_serving: Callable[[], None],
    read_again: Callable[[], Config],
    engine_command: tuple[str, ...] = engine_process.COMMAND,
) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code. SIGHUP has the settings read again.

    Args:
        listening: from `bind`.
        on_serving: called once, when a completion would be taken.
        read_again: gives the settings as they are then; raises `ConfigError`.
        engine_command: the program of the engine's process.

    Raises:
        CannotListen: the directory for the engine's socket can't be used.
    """
    with run_dir() as folder, listening, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        supervisor = _Supervisor(config, listening, folder, engine_command)
        return runner.run(supervisor.run(on_serving, read_again))


class Keeper(threading.Thread):
    """Keeps one child process alive. A thread of its own, so that no busy loop delays it."""

    def __init__(
        self,
        place: str,
        start_process: Callable[[], subprocess.Popen[bytes]],
        on_death: Callable[[int], None],
    ) -> None:
        super().__init__(name=f"keeper-{place}", daemon=True)
        self._place = place
        self._start_process = start_process
        self._on_death = on_death
        self._told = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Starts the process again whenever it dies, with growing delays while it dies young."""
        delay_s = _FIRST_DELAY_S
        while not self._told.is_set():
            began_s = time.monotonic()
            code = self._live()
            if self._told.is_set():
                return
            if time.monotonic() - began_s >= _HEALTHY_S:
                delay_s = _FIRST_DELAY_S
            _LOG.error("process_died", place=self._place, by=_cause(code), restart_in_s=delay_s)
            try:
                self._on_death(code)
            except OSError:  # of a file: the process is started again all the same
                _LOG.exception("process_death_not_counted", place=self._place)
            self._told.wait(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    def _live(self) -> int:
        """One process from its start to its end; the exit code."""
        with self._lock:
            if self._told.is_set():
                return 0
            try:
                process = self._process = self._start_process()
            except OSError as error:
                if means_none_left(error):
                    log_none_left()
                _LOG.exception("process_not_started", place=self._place)
                return os.EX_OSERR
        _LOG.info("process_started", place=self._place, pid=process.pid)
        code = process.wait()
        self._close_input(process)
        return code

    def tell_stop(self) -> None:
        """Asks the process to end and no other to follow."""
        self._told.set()
        with self._lock:
            if self._process is not None:
                self._close_input(self._process)

    def wait_stopped(self, within_s: float) -> None:
        """Until it has ended; what takes longer is killed."""
        self.join(max(0.0, within_s))
        if self.is_alive():
            _LOG.error("process_killed", place=self._place, reason="it did not stop in time")
            self.kill()
            self.join()

    def kill(self, *, for_good: bool = True) -> None:
        """Ends the process at once; unless `for_good`, another follows."""
        if for_good:
            self._told.set()
        with self._lock:
            if self._process is not None:
                self._process.kill()

    @staticmethod
    def _close_input(process: subprocess.Popen[bytes]) -> None:
        if process.stdin:
            process.stdin.close()


class _Supervisor:
    def __init__(
        self, config: Config, listening: socket.socket, run_dir: Path, engine_command: tuple[str, ...]
    ) -> None:
        self._config = config
        self._listening = listening
        self._run_dir = run_dir
        self._engine_socket = _bind_engine(run_dir / "engine")
        self._alone = config.server.workers == 1
        self._metric_store = metrics.shared_store(run_dir, "worker-0" if self._alone else "supervisor")
        self._metrics = metrics.SupervisorMetrics(self._metric_store)
        self._stop = asyncio.Event()
        self._exit_code = EXIT_STOPPED
        self._engine_answered = False
        self._started_at = int(time.time())
        self._group = new_lease_owner("server")
        self._on_terminal = os.isatty(_STDERR)
        self._reloading = asyncio.Lock()
        self._told_to_reload: asyncio.Task[object] | None = None
        self._engine = Keeper(
            engine_process.PLACE, lambda: engine_process.spawn(self._engine_boot(), engine_command), self._engine_died
        )
        self._pulse = Pulse()
        self._watch = Watch(self._pulse, config.engine.hang_s, self._engine_hung)
        self._workers: list[Keeper] = []

    async def run(self, on_serving: Callable[[], None], read_again: Callable[[], Config]) -> int:
        self._loop = asyncio.get_running_loop()
        control = Control(self._config.home, lambda: self._reload(read_again))
        for told in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(told, self._signalled, told)
        self._loop.add_signal_handler(signal.SIGHUP, self._hung_up, control)
        worker.raise_open_files()
        self._engine.start()
        if self._config.engine.hang_s:
            self._watch.start()

        def serving() -> None:
            self._engine_answered = True
            on_serving()

        try:
            async with control:
                if self._alone:
                    await worker.serve(
                        self._boot("worker-0", self._listening.detach()), self._stop, self._metric_store, serving
                    )
                else:
                    await self._serve_with_workers(serving)
        finally:
            self._watch.stop()
            self._engine.tell_stop()
            await asyncio.to_thread(self._engine.wait_stopped, _ENGINE_STOP_S)
            self._engine_socket.close()
            self._pulse.close()
        return self._exit_code

    async def _serve_with_workers(self, serving: Callable[[], None]) -> None:
        config = self._config
        store = await asyncio.to_thread(open_store, config.database, durability=config.books.durability)
        try:
            async with (
                worker.own_budgets(store, config.home, self._group) as budgets,
                Hub(str(self._run_dir / "hub"), budgets),
            ):
                await self._keep_workers(serving)
        finally:
            store.close()

    async def _keep_workers(self, serving: Callable[[], None]) -> None:
        for place in self._places():
            keeper = Keeper(
                place,
                lambda place=place: worker.spawn(self._boot(place, self._listening.fileno())),  # type: ignore[misc]
                self._worker_died(place),
            )
            self._workers.append(keeper)
            keeper.start()
        stopping = asyncio.create_task(self._stop.wait())
        async with EngineClient(str(self._run_dir / "engine")) as engine:
            ready = asyncio.create_task(engine.wait_ready())
            await asyncio.wait([ready, stopping], return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
        if not self._stop.is_set():
            serving()
        await stopping
        await asyncio.to_thread(self._stop_workers)

    def _stop_workers(self) -> None:
        bound_s = time.monotonic() + self._config.server.drain_s + _WORKER_GRACE_S
        for keeper in self._workers:
            keeper.tell_stop()
        self._listening.close()
        for keeper in self._workers:
            keeper.wait_stopped(bound_s - time.monotonic())

    async def _reload(self, read_again: Callable[[], Config]) -> Config:
        """Has every worker take the settings as they are now, or none.

        Raises:
            ConfigError, RestartNeeded, NotReloaded
        """
        async with self._reloading, contextlib.AsyncExitStack() as offers:
            config = await asyncio.to_thread(read_again)
            check_live(self._config, config)
            settings = msgspec.json.encode(live_settings(config))
            takes = []
            for place in self._places():
                offer = offered(worker.offers_path(self._run_dir, place), settings)
                try:
                    takes.append(await offers.enter_async_context(offer))
                except (OSError, TimeoutError) as error:
                    raise NotReloaded(f"{place} can't take the settings now: see the log, and try again") from error
            self._config = config  # who dies from here on is started again with these
            logs.configure(config.logs)
            for number, take in enumerate(takes):
                try:
                    await take()
                except (OSError, TimeoutError):
                    self._workers[number].kill(for_good=False)
        return config

    def _places(self) -> list[str]:
        return [f"worker-{number}" for number in range(self._config.server.workers)]

    def _engine_boot(self) -> engine_process.Boot:
        return engine_process.Boot(
            self._engine_socket.fileno(),
            str(self._run_dir),
            self._config.engine,
            self._config.logs,
            self._pulse.descriptor,
        )

    def _boot(self, place: str, listening_fd: int) -> worker.WorkerBoot:
        return worker.WorkerBoot(
            place=place,
            listening_fd=listening_fd,
            engine_path=str(self._run_dir / "engine"),
            run_dir=str(self._run_dir),
            hub_path="" if self._alone else str(self._run_dir / "hub"),
            group=self._group,
            home=str(self._config.home),
            database=self._config.database,
            started_at=self._started_at,
            books=self._config.books,
            cache=self._config.cache,
            telemetry=self._config.telemetry,
            live=live_settings(self._config),
        )

    def _engine_hung(self, silent_s: float) -> None:
        _LOG.error("engine_hung", silent_s=silent_s)
        self._engine.kill(for_good=False)

    def _engine_died(self, code: int) -> None:
        self._pulse.clear()
        self._metrics.count_death("engine")
        metrics.process_died(self._run_dir, engine_process.PLACE)
        if code == engine_process.EXIT_CANNOT_START and not self._engine_answered:
            self._exit_code = EXIT_ENGINE_CANNOT_START
            self._loop.call_soon_threadsafe(self._stop.set)

    def _worker_died(self, place: str) -> Callable[[int], None]:
        def died(_code: int) -> None:
            self._metrics.count_death("worker")
            metrics.process_died(self._run_dir, place)

        return died

    def _hung_up(self, control: Control) -> None:
        """SIGHUP: the settings are to be read again, unless it is the terminal's last word."""
        if self._on_terminal and not os.isatty(_STDERR):
            os.dup2(os.open(os.devnull, os.O_WRONLY), _STDERR)  # to write a line to what is gone would fail
            self._signalled(signal.SIGHUP)
        else:
            self._told_to_reload = self._loop.create_task(control.reload())

    def _signalled(self, told: signal.Signals) -> None:
        if not self._stop.is_set():
            _LOG.info("stopping", told_by=told.name, at_most_s=self._config.server.drain_s)
            self._stop.set()
        elif told is signal.SIGINT:
            for keeper in (*self._workers, self._engine):
                keeper.kill()
            shutil.rmtree(self._run_dir, ignore_errors=True)
            os._exit(EXIT_INTERRUPTED_TWICE)


def _bind_engine(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise CannotListen(
            f"the engine's socket can't be made at {path} ({error}): set TMPDIR to a short path"
        ) from error
    listening.listen(_BACKLOG)
    return listening


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
