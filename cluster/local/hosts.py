"""Hosts on this machine, to be switched off and cut off.

Where the kernel lets us, each is a set of namespaces: a network of its own on a common bridge, and its own process
table, name and `/tmp/ray`.  Elsewhere (in most containers) it is an address of 127.0.0.0/8, whose Ray needs ports of
its own, and which is cut off by freezing its processes.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import psutil

ROOT = Path(__file__).parents[2]
KIND, MARK = "VBP_HOSTS", "VBP_HOST"
"""In the environment of all processes: `namespaces` or `addresses`, and in those of a host its home."""
APART = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc")
BRIDGE = "ip link set lo up; ip link add vbp type bridge; ip address add 10.77.0.254/24 dev vbp; ip link set vbp up"
"""What joins the hosts: a network that nothing else is on, where this program has the number 254."""


def enclose() -> None:
    """Start this program anew in namespaces of its own, with the bridge; return when it is there, or cannot be."""
    if KIND in os.environ:
        return
    apart = [*APART, *(() if os.geteuid() == 0 else ("--map-root-user",))]
    trial = f"{BRIDGE}; ip link add one type veth peer name other; mkdir -p /tmp/ray"
    with suppress(FileNotFoundError):
        if subprocess.run([*apart, "sh", "-ec", trial], check=False, capture_output=True).returncode == 0:
            os.environ[KIND] = "namespaces"
            again = shlex.join([sys.executable, *sys.argv])
            os.execvp(apart[0], [*apart, "--kill-child=TERM", "sh", "-ec", f"{BRIDGE}; exec {again}"])
    os.environ[KIND] = "addresses"


def make_host(name: str, number: int, folder: Path) -> Host:
    """A host that is on; its user's home is below `folder`."""
    (folder / name / ".ray").mkdir(parents=True)
    return _kind()(name, number, folder / name)


class Host:
    """What both kinds share.

    Attributes:
        beside: the address at which it finds what runs beside the hosts.
        port: of a head for other nodes.
        jobs_port: of a head for jobs.
        name: for people.
        address: its own.
        home: its user's home folder.
        options: what `ray start` needs there beside what it needs on a real host.
        enter: what goes before a command, to run it there.
    """

    beside: ClassVar[str]
    port: ClassVar[int]
    jobs_port: ClassVar[int]

    def __init__(self, name: str, address: str, home: Path, options: str = "", enter: tuple[str, ...] = ()) -> None:
        self.name, self.address, self.home, self.options, self.enter = name, address, home, options, enter

    def run(self, command: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Print a command and start it there, in the repository's root."""
        say(f"{self.name}$ {command}")
        output = log.open("ab") if log else None
        environment = os.environ | {"HOME": str(self.home), MARK: str(self.home)}
        words = [*self.enter, *shlex.split(command)]
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=output)

    def processes(self) -> Iterator[psutil.Process]:
        """All that run there."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # they come and go while they are looked at
                if process.environ().get(MARK) == str(self.home):
                    yield process

    def running(self, word: str) -> int:
        """How many processes there have `word` in their command lines."""
        count = 0
        for process in self.processes():
            with suppress(psutil.Error):
                count += word in " ".join(process.cmdline())
        return count

    def off(self) -> None:
        """Switch it off: all that runs there is gone at once."""
        while list(self.processes()):
            self._tell(signal.SIGKILL)
            time.sleep(0.05)

    def _tell(self, number: signal.Signals) -> None:
        """Send a signal to all processes."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.send_signal(number)

    def cut(self) -> None:
        """Take it off the network, which it is not told."""
        raise NotImplementedError

    def heal(self) -> None:
        """Put it back."""
        raise NotImplementedError


class Namespaces(Host):
    """A host as Linux sees one."""

    beside, port, jobs_port = "10.77.0.254", 6379, 8265

    def __init__(self, name: str, number: int, home: Path) -> None:
        (home / "tmp").mkdir()
        self._link = f"vbp{number}"
        self._outer = subprocess.Popen(
            [*APART, "--uts", "--kill-child", "sleep", "infinity"],
            env=os.environ | {MARK: str(home)},
            stderr=subprocess.DEVNULL,
        )
        self._first = _only_child(self._outer.pid, "sleep")
        into = f"nsenter --target={self._first.pid} --net --mount --pid --uts env --chdir={shlex.quote(str(ROOT))}"
        enter = tuple(shlex.split(into))
        super().__init__(name, f"10.77.0.{number}", home, enter=enter)
        _do(f"ip link add {self._link} type veth peer name eth0 netns {self._first.pid}")
        _do(f"ip link set {self._link} master vbp up")
        inside = (
            f"hostname {name}; mount --bind {home}/tmp /tmp/ray; ip link set lo up; ip link set eth0 up; "
            f"ip address add {self.address}/24 dev eth0; ip route add default via {self.beside}"
        )
        _do(shlex.join([*enter, "sh", "-ec", inside]))

    def off(self) -> None:
        """With its first process all others end."""
        with suppress(psutil.Error):
            self._first.kill()
        self._outer.wait()
        super().off()  # what entered from outside is about to end

    def cut(self) -> None:
        """Unplug it."""
        _do(f"ip link set {self._link} down")

    def heal(self) -> None:
        """Plug it in."""
        _do(f"ip link set {self._link} up")


class Address(Host):
    """An address on this machine, where Ray must keep out of the way of other nodes."""

    beside, port, jobs_port = "127.0.0.1", 6397, 8297

    def __init__(self, name: str, number: int, home: Path) -> None:
        address = f"127.0.0.{number}"
        first = 20000 + 1000 * number
        # nodes that share a temporary folder take each other's working directories away
        options = (
            f"--node-ip-address={address} --temp-dir={home}/tmp --dashboard-agent-listen-port={52300 + number} "
            f"--min-worker-port={first} --max-worker-port={first + 999}"
        )
        if number == 1:
            options += f" --dashboard-port={self.jobs_port} --ray-client-server-port={self.jobs_port + 1}"
        super().__init__(name, address, home, options)

    def cut(self) -> None:
        """Freeze it, which looks the same from outside."""
        self._tell(signal.SIGSTOP)

    def heal(self) -> None:
        """Let it go on."""
        self._tell(signal.SIGCONT)


def beside() -> str:
    """The address at which hosts find what runs beside them."""
    return _kind().beside


def _kind() -> type[Namespaces | Address]:
    return Namespaces if os.environ[KIND] == "namespaces" else Address


def _only_child(parent: int, name: str) -> psutil.Process:
    """The child of a process, as soon as it is what it shall be."""
    while not (children := psutil.Process(parent).children()) or children[0].name() != name:
        time.sleep(0.01)
    return children[0]


def _do(command: str) -> None:
    subprocess.run(shlex.split(command), check=True)


def say(text: str) -> None:
    """A line of the protocol: `host$ command`, or `# remark`."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
