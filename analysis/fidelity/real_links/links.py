"""Hosts with throttled links on one machine: a Linux network namespace each, joined by a bridge, slowed by ``tc tbf``.

The namespaces have no names. Only this process's open files keep them alive, so the kernel takes namespaces, bridge
and links away when the process ends, by whatever signal; nothing is ever made in the machine's own namespace. The
processes on the hosts die with their parent (``PR_SET_PDEATHSIG``).

What a link carries, by derivation: the token bucket pays for every frame of at most MTU + 14 bytes, headers included,
also where the kernel hands several frames on in one piece (``qdisc_pkt_len_init``). A full TCP segment holds MTU - 52
bytes of payload (20 IP, 20 TCP, 12 timestamps), so a stream gets rate * 1448 / 1514 at an MTU of 1500, if no
acknowledgements of another stream share its way. There is one of 66 bytes for every two segments, or for every piece.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from simdist.errors import InputError, RunError

#: the link of a host, seen from inside
INTERFACE = "eth0"
#: what Linux counts of an Ethernet frame besides the IP packet: addresses and type, no preamble, checksum or gap
FRAME_BYTES = 14
#: a full queue would drop packets; no sender's window comes near this
QUEUE_BYTES = 64 * 2**20
#: the token bucket forgives timers that are this late (s); what it holds passes at once after a pause
TIMER_SLACK = 100e-6
#: what two cores forward with ease on all links together; every piece costs the same time, whatever its size
PIECES_PER_SECOND = 20_000

_ROOT = Path(__file__).parents[3]
_COUNTERS = ["tc", "-s", "-j", "qdisc", "show", "dev", INTERFACE]
_NEEDS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "chrt": "util-linux",
}


def frames_per_piece(rate_bits: float, count: int, mtu: int = 1500) -> int:
    """Return how many frames the kernel hands on in one piece, so that one machine can play all the hosts."""
    return math.ceil(count * rate_bits / 8 / (mtu + FRAME_BYTES) / PIECES_PER_SECOND)


def burst_bytes(rate_bits: float, count: int, mtu: int = 1500) -> int:
    """Return the size of the token bucket: a piece, and what flows while a timer is late, at least a frame."""
    frame = mtu + FRAME_BYTES
    return frames_per_piece(rate_bits, count, mtu) * frame + max(frame, round(rate_bits / 8 * TIMER_SLACK))


def backlog_bytes(rate_bits: float) -> int:
    """Return the memory that a stream's packets may fill in its host's queue (``tcp_limit_output_bytes``).

    About four packets (each takes some 2.5 KB of memory), or three and what flows while timers are late. Short
    queues with equally much of every stream are what hosts have whose system installs a fair queue (fq_codel, RFC
    8290; this kernel may lack it). In one long queue, a stream's share would follow its window, and requests and
    acknowledgements would wait behind whole messages.
    """
    return max(10240, 8192 + round(rate_bits / 8 * 3 * TIMER_SLACK))


def own_tx_bytes() -> int:
    """Return the bytes of all frames that the calling process's host has put on its link so far (takes some ms).

    These are the bytes that the token bucket has let pass; the interface's own ``tx_bytes`` would count the headers of
    a piece once.
    """
    return _tx_bytes(subprocess.run(_COUNTERS, capture_output=True, text=True, check=True, timeout=30).stdout)


class Hosts:
    """Hosts with one throttled link each (both directions) to a switch; a context manager.

    Example::

        with Hosts(4, 100e6) as hosts:
            results = hosts.launch(Path("script.py"), ["--steps", "5"], timeout=60)

    Args:
        count: number of hosts.
        rate_bits: bit/s of each direction of each link, counted as Linux does: headers and 14 frame bytes included.
        mtu: bytes of the longest IP packet.
        priority: real-time priority of what is launched, None for an ordinary one. With it, other work on the machine
            hardly matters, since meanwhile the kernel's packet threads (ksoftirqd) are given one more.

    Raises:
        InputError: without Linux, root, iproute2 or the kernel's veth, bridge and tbf.
    """

    def __init__(self, count: int, rate_bits: float, *, mtu: int = 1500, priority: int | None = 10) -> None:
        self.count = count
        self.rate_bits = rate_bits
        self.mtu = mtu
        self._priority = priority
        self._open = ExitStack()

    def __enter__(self) -> Hosts:
        _check_machine()
        with ExitStack() as undo:
            undo.enter_context(_awake())
            if self._priority is not None:
                undo.enter_context(_prompt_packets(self._priority + 1))
            self._hub = undo.enter_context(_namespace())
            self._spaces = [undo.enter_context(_namespace()) for _ in range(self.count)]
            self._wire()
            self.set_rate(self.rate_bits)
            self._open = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def set_rate(self, rate_bits: float) -> None:
        """Change the rate of every link, both directions; connections made before keep the size of their pieces."""
        self.rate_bits = rate_bits
        bucket = burst_bytes(rate_bits, self.count, self.mtu)
        shape = f"root tbf rate {round(rate_bits)}bit burst {bucket} limit {QUEUE_BYTES}"
        for space in self._spaces:
            _run(space, ["tc", "-batch", "-"], f"qdisc replace dev {INTERFACE} {shape}\n")
            pieces = frames_per_piece(rate_bits, self.count, self.mtu)
            _run(space, ["ip", "link", "set", INTERFACE, "gso_max_segs", str(pieces)])
            limit = f"echo {backlog_bytes(rate_bits)} > /proc/sys/net/ipv4/tcp_limit_output_bytes"
            _run(space, ["sh", "-c", limit])
        ports = "".join(f"qdisc replace dev port{i} {shape}\n" for i in range(self.count))
        _run(self._hub, ["tc", "-batch", "-"], ports)

    def address(self, host: int) -> str:
        """Return the IPv4 address of a host."""
        return f"10.77.{(host + 1) // 256}.{(host + 1) % 256}"

    def tx_bytes(self) -> tuple[int, ...]:
        """Return the bytes of all frames that each host has put on its link so far."""
        return tuple(_tx_bytes(_run(space, _COUNTERS)) for space in self._spaces)

    def launch(
        self, script: Path, args: Sequence[str] = (), env: Mapping[str, str] | None = None, timeout: float = 300.0
    ) -> list[Any]:
        """Run a Python script on every host, set up for ``init_process_group("gloo")``, and return what they print.

        Each process finds ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT`` and ``GLOO_SOCKET_IFNAME`` in its
        environment, can import this repository's packages, computes with one thread, and prints one JSON document as
        the last line of its output.

        Raises:
            RunError: when a process fails, prints no JSON, or is not done after ``timeout`` seconds. All are ended.
        """
        with ExitStack() as stack:
            processes = []
            files = []
            for host, space in enumerate(self._spaces):
                out, err = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
                setting = {
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": str(_ROOT),
                    **(env or {}),
                    "RANK": str(host),
                    "WORLD_SIZE": str(self.count),
                    "MASTER_ADDR": self.address(0),
                    "MASTER_PORT": "29500",
                    "GLOO_SOCKET_IFNAME": INTERFACE,
                }
                prompt = [] if self._priority is None else ["chrt", "-r", str(self._priority)]
                command = [*_inside(space), "setpriv", "--pdeathsig", "KILL", *prompt, sys.executable]
                process = subprocess.Popen(
                    [*command, str(script), *args], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=setting
                )
                stack.callback(_end, process)
                processes.append(process)
                files.append((out, err))
            _wait(processes, [err for _, err in files], timeout)
            return [_answer(host, out, err) for host, (out, err) in enumerate(files)]

    def _wire(self) -> None:
        hub = ["link add switch type bridge mcast_snooping 0", "link set switch up"]
        for host, space in enumerate(self._spaces):
            port = f"port{host}"
            hub += [
                f"link add {port} type veth peer name {INTERFACE} netns {_path(space)}",
                f"link set {port} mtu {self.mtu} master switch",
                f"link set {port} up",
            ]
        # Else IPv6 announces itself now and then, on the measured links too.
        quiet = "for file in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $file; done"
        _run(self._hub, ["sh", "-c", quiet])
        _run(self._hub, ["ip", "-batch", "-"], "\n".join(hub) + "\n")
        for host, space in enumerate(self._spaces):
            inside = [
                f"link set {INTERFACE} mtu {self.mtu}",
                "link set lo up",
                f"link set {INTERFACE} up",
                f"address add {self.address(host)}/16 dev {INTERFACE}",
            ]
            # Reno fills the pipe without pacing of its own, and no connection learns from the one before.
            tcp = (
                "cd /proc/sys/net/ipv4; echo reno > tcp_congestion_control; echo 1 > tcp_no_metrics_save; "
                "if [ -e tcp_timestamps ]; then echo 1 > tcp_timestamps; fi"
            )
            _run(space, ["sh", "-c", f"{quiet}; {tcp}"])
            _run(space, ["ip", "-batch", "-"], "\n".join(inside) + "\n")


def _check_machine() -> None:
    instead = "use the committed measurements, or a Linux machine where you are root and iproute2 is installed"
    if not sys.platform.startswith("linux"):
        raise InputError(f"got the system {sys.platform!r}; real links need Linux's network namespaces: {instead}")
    if os.geteuid() != 0:
        raise InputError(f"got user {os.geteuid()}; making network namespaces needs root (sudo): {instead}")
    for tool, package in _NEEDS.items():
        if shutil.which(tool) is None:
            raise InputError(f"got no command {tool!r}; expected the package {package}: {instead}")


@contextmanager
def _prompt_packets(priority: int) -> Iterator[None]:
    """Let the kernel threads that forward packets run before all else; else they queue up with any other program."""
    threads = []
    for name in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # processes come and go
            if name.read_text().startswith("ksoftirqd/"):
                threads.append(int(name.parent.name))
    # This shell sets things right again when it reads the end of its input, also if this process is killed.
    back = "read _; " + "; ".join(f"chrt --other --pid 0 {pid}" for pid in threads)
    with subprocess.Popen(["sh", "-c", back], stdin=subprocess.PIPE, start_new_session=True):
        for pid in threads:
            os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(priority))
        yield


@contextmanager
def _awake() -> Iterator[None]:
    """Keep every processor busy with work that gives way to anything else; it ends with this process.

    A virtual processor that has fallen asleep takes its time to wake, and with short queues every packet waits for it:
    streams took 20 to 50 % longer on an idle machine than on a busy one.
    """
    spin = f"while kill -0 {os.getpid()} 2>/dev/null; do :; done"
    with ExitStack() as undo:
        for _ in range(os.cpu_count() or 1):
            spinner = subprocess.Popen(["chrt", "--idle", "0", "sh", "-c", spin], start_new_session=True)
            undo.callback(_end, spinner)
        yield


@contextmanager
def _namespace() -> Iterator[int]:
    """Make a network namespace and yield the open file that keeps it alive."""
    maker = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert maker.stdin is not None
    assert maker.stdout is not None
    assert maker.stderr is not None
    with maker:
        if maker.stdout.readline() != "ready\n":
            raise InputError(f"the kernel refused a network namespace: {maker.stderr.read().strip()}")
        space = os.open(f"/proc/{maker.pid}/ns/net", os.O_RDONLY)
    try:
        yield space
    finally:
        os.close(space)


def _path(space: int) -> str:
    return f"/proc/{os.getpid()}/fd/{space}"


def _inside(space: int) -> list[str]:
    return ["nsenter", f"--net={_path(space)}"]


def _run(space: int, command: Sequence[str], text: str = "") -> str:
    done = subprocess.run([*_inside(space), *command], input=text, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise InputError(
            f"the kernel refused a throttled link: {shlex.join(command)}: {done.stderr.strip()}; expected veth, bridge "
            "and sch_tbf (CONFIG_VETH, CONFIG_BRIDGE, CONFIG_NET_SCH_TBF)"
        )
    return done.stdout


def _tx_bytes(counters: str) -> int:
    return int(json.loads(counters)[0]["bytes"])


def _wait(processes: Sequence[subprocess.Popen[bytes]], errors: Sequence[IO[str]], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in processes):
        for host, process in enumerate(processes):
            if process.poll():
                raise RunError(f"host {host} failed with status {process.returncode}:\n{_tail(errors[host])}")
        if time.monotonic() > deadline:
            late = [host for host, process in enumerate(processes) if process.poll() is None]
            raise RunError(f"hosts {late} were not done after {timeout} s:\n{_tail(errors[late[0]])}")
        time.sleep(0.02)


def _answer(host: int, out: IO[str], err: IO[str]) -> Any:
    out.seek(0)
    lines = out.read().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        raise RunError(f"host {host} printed no JSON as its last line:\n{_tail(out)}\n{_tail(err)}") from None


def _tail(file: IO[str]) -> str:
    file.seek(0)
    return file.read()[-2000:].strip()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
