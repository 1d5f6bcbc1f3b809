"""Real storage servers for tests, on 127.0.0.1 alone, gone with the test run however that ends."""

import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.faultproxy import FaultProxy

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
class S3Server:
    """A SeaweedFS server with one bucket. `kill`, `start`, `pause` and `resume` are there for tests of faults."""

    folder: Path
    port: int = field(default_factory=lambda: free_port())
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage_options(self) -> dict[str, dict[str, str]]:
        return {"s3://": {"endpoint_url": self.endpoint}}

    @property
    def s3fs_options(self) -> dict[str, dict[str, Any]]:
        """The same, with an option that obstore does not know."""
        return {"s3://": {"endpoint_url": self.endpoint, "config_kwargs": {}}}

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
