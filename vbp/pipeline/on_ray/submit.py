"""``--address``: submit the same command to a Ray cluster as a job, show its log, and end with its exit code.

The cluster runs the code of this machine: the ``vbp`` package, 2 MB, is sent, and the files of a network of the user's
own; the working directory is not. The cluster provides Python, Ray and the other packages.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from http.client import HTTPException
from importlib.metadata import metadata, requires
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import vbp
from vbp.choices import NAMED_WEIGHTS
from vbp.errors import InterruptedRunError, UsageError, VBPError
from vbp.networks.names import code_of, is_file
from vbp.networks.owncode import OwnCode
from vbp.pipeline.config import RunConfig
from vbp.storage.stores.options import check_options

ANSWER_SECONDS = 15
"""Time limit for one answer of the job API."""
SILENT_SECONDS = 60
"""After so long without a line, the log is requested again: a tunnel may have lost the connection unnoticed."""
LOST_SECONDS = 120
"""After so long without an answer, the cluster is no longer followed."""
PACKAGE = Path(vbp.__file__).parent
RUNNING = ("PENDING", "RUNNING")
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
EXIT_CODES = (0, 1, 2, 3, 4)
"""Exit codes of `vbp explain`, which are passed on."""


def submit(config: RunConfig, address: str, *, as_json: bool, show: Callable[[str], None]) -> int:
    """Run `config` as a job of the cluster at `address`, or follow the job that already runs the same command.

    Args:
        config: the run; its places must be URLs, or absolute paths that the cluster's nodes see.
        address: URL of the job API, like ``http://head:8265``.
        as_json: whether the job prints its summary as JSON.
        show: called with the job's log as it grows, and with messages about the job.

    Returns:
        The job's own exit code.

    Raises:
        UsageError: no cluster answers, it refuses us, or it has other versions; or a place exists only on this machine.
        InterruptedRunError: the job was stopped, or the cluster no longer answers.
    """
    check_options(config.storage_options)
    check_places(config, address)
    config, code = _with_code(config)
    api = JobAPI(address)
    api.check_versions()
    entrypoint = shlex.join(["python", "-m", "vbp.cli", config.command, *["--json"] * as_json, *config.arguments()])
    if code is not None:  # a job with other code is another job
        entrypoint = f"VBP_CODE={code.sha256[:16]} {entrypoint}"
    job = api.running(entrypoint)
    if job is None:
        job = api.submit(entrypoint, code)
        size = package_bytes() / 1e6
        own = "" if code is None else f" and {', '.join(list(code.files)[:3])}{', ...' * (len(code.files) > 3)}"
        show(f"Submitted to {api.address} as {job}, with vbp {vbp.__version__} of this machine ({size:.1f} MB){own}.\n")
    else:
        show(f"The same command runs on {api.address} already, as {job}: following it.\n")
    try:
        end, log = _follow(api, job, show)
    except KeyboardInterrupt as error:
        raise InterruptedRunError(
            f"The job goes on without this terminal. {_how_to_go_on(api.address, job)}"
        ) from error
    return _exit_code(end, log)


def _with_code(config: RunConfig) -> tuple[RunConfig, OwnCode | None]:
    """The configuration as the job will know it, and the code of the user's own that is sent along; it is not run.

    Raises:
        ModelError: there is no such code here.
    """
    code = code_of(config.model)
    if code is None or code.is_installed:
        return config, None
    return replace(config, model=code.model_there), code


def _how_to_go_on(address: str, job: str) -> str:
    return (
        f"Follow it: the same command again, or `ray job logs {job} --address {address} --follow`; "
        f"stop it: `ray job stop {job} --address {address}`."
    )


def package_bytes() -> int:
    """Bytes of the package that is sent, before Ray compresses it."""
    return sum(
        path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file() and path.parent.name != "__pycache__"
    )


def check_places(config: RunConfig, address: str) -> None:
    """Refuse paths that are relative to this machine.

    Absolute paths are taken as paths of the cluster, which checks them itself: they may lie on a shared file system.
    The address does not tell whether the cluster is this machine, since a tunnel has an address of this machine too.

    Raises:
        UsageError: a path is relative to this machine's working directory or home.
    """
    places = {"INPUT": config.input, "OUTPUT": config.output, "--classes": config.class_file, "--truth": config.truth}
    if config.weights not in NAMED_WEIGHTS:
        places["--weights"] = config.weights
    if is_file(config.model):
        places["--model"] = config.model
    for name, place in places.items():
        if place is not None and "://" not in place and not os.path.isabs(place):
            raise UsageError(
                f"{name} (={place}) is a path of this machine, and the cluster at {address} does not see it: copy it "
                "to a bucket and give the URL, or give the absolute path on a file system that all nodes share."
            )
    if config.runner == "local":
        raise UsageError("--runner local keeps the work in one process, and --address gives it to a cluster; drop one.")


class JobAPI:
    """The job API of a cluster's head node, ``http://HEAD:8265``; every request has a time limit.

    Args:
        address: URL of the API.

    Raises:
        UsageError: nothing answers there, or it wants another token.
    """

    def __init__(self, address: str) -> None:
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        self._token: str | None = None
        with self._answering():
            self._let_in()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except HTTPError as error:
            raise UsageError(
                f"--address (={self.address}) is no job API of Ray: it answers {error.code} {error.reason}. Give the "
                "address of the dashboard, http://HEAD:8265 by default."
            ) from error
        except (OSError, HTTPException, ValueError, LookupError) as error:
            raise UsageError(
                f"--address (={self.address}) does not answer as a job API of Ray does: {_reason(error)}. Is the "
                "cluster up, and the tunnel to its port 8265 open? It is made by ssh -L 8265:127.0.0.1:8265 HEAD, "
                "kubectl port-forward or ray dashboard."
            ) from error

    def _let_in(self) -> None:
        try:
            self.ask("/api/version")
            return
        except HTTPError as error:
            if error.code != 401:
                raise
        self._token = token()
        if self._token is None:
            raise UsageError(f"The cluster at {self.address} asks for a token, and there is none here. {TOKEN}")
        try:
            self.ask("/api/version")
        except HTTPError as error:
            if error.code not in (401, 403):
                raise
            raise UsageError(f"The cluster at {self.address} refuses the token that is set here. {TOKEN}") from error

    @property
    def _headers(self) -> dict[str, str]:
        return {} if self._token is None else {"Authorization": f"Bearer {self._token}"}

    def ask(self, path: str) -> Any:
        """The API's answer to a GET request for `path`.

        Raises:
            OSError: the API does not answer, or refuses (``HTTPError``).
        """
        try:
            with urlopen(Request(self.address + path, headers=self._headers), timeout=ANSWER_SECONDS) as answer:
                return json.load(answer)
        except HTTPError as error:
            error.close()
            raise

    def check_versions(self) -> None:
        """Refuse a cluster with a version of Python or Ray that this vbp does not support.

        Raises:
            UsageError: names both versions.
        """
        with self._answering():
            theirs = {"Ray": self.ask("/api/version")["ray_version"]}
        with suppress(OSError, LookupError, TypeError, ValueError):  # other versions of Ray may not report it there
            theirs["Python"] = self.ask("/api/v0/cluster_metadata")["data"]["pythonVersion"]
        refuse_other_versions(self.address, theirs)

    def running(self, entrypoint: str) -> str | None:
        """The name of a job that was submitted with this command and has not ended; None if there is none."""
        with self._answering():
            all_jobs = self.ask("/api/jobs/")
            running = [job for job in all_jobs if job["status"] in RUNNING and job["entrypoint"] == entrypoint]
            names = [job["submission_id"] for job in running if job["submission_id"]]  # other drivers have no id
        return str(names[0]) if names else None

    def submit(self, entrypoint: str, code: OwnCode | None = None) -> str:
        """Upload the package, unless the cluster has it, and start the job in a folder with `code`; returns a name."""
        job = f"vbp-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        environment: dict[str, Any] = {"py_modules": [str(PACKAGE)], "excludes": ["**/__pycache__"]}
        try:
            with TemporaryDirectory(prefix="vbp-code-") as folder:
                if code is not None:
                    code.write(Path(folder))
                    environment["working_dir"] = folder
                self._client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=environment)
        except (OSError, RuntimeError) as error:
            raise UsageError(f"The cluster at {self.address} did not take the job: {_reason(error)[:500]}.") from error
        return job

    def status(self, job: str) -> Mapping[str, Any]:
        """The job's status, as the API describes it."""
        found: Mapping[str, Any] = self.ask(f"/api/jobs/{job}")
        return found

    def log(self, job: str) -> str:
        """The job's whole log; empty if the cluster no longer gives it."""
        with suppress(OSError):
            return str(self.ask(f"/api/jobs/{job}/logs")["logs"] or "")
        return ""

    async def tail(self, job: str, heard: Callable[[str], None]) -> None:
        """Pass on the log from its beginning, until the job ends or writes nothing for `SILENT_SECONDS`."""
        words = aiter(self._client.tail_job_logs(job))
        with suppress(StopAsyncIteration):
            while True:
                heard(await asyncio.wait_for(anext(words), SILENT_SECONDS))

    @cached_property
    def _client(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _unset("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # these variables would override `address`
            return JobSubmissionClient(self.address, headers=dict(self._headers))


TOKEN = (
    "Put the cluster's token into RAY_AUTH_TOKEN, into the file that RAY_AUTH_TOKEN_PATH names, or into "
    "~/.ray/auth_token."
)


def token() -> str | None:
    """The cluster's token, from the places where Ray looks for it."""
    given = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if given:
        return given
    with suppress(OSError):
        path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
        return Path(path).read_text().strip() or None
    return None


def refuse_other_versions(address: str, theirs: Mapping[str, str]) -> None:
    """Refuse versions of ``Ray`` and ``Python`` that this vbp does not support.

    Raises:
        UsageError: names both versions.
    """
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    ray = next(each for each in map(Requirement, requires("visualbackprop") or ()) if each.name == "ray")
    needs = {"Ray": ray.specifier, "Python": SpecifierSet(metadata("visualbackprop")["Requires-Python"])}
    if all(needs[name].contains(version, prereleases=True) for name, version in theirs.items()):
        return
    has = " and ".join(f"{name} {version}" for name, version in theirs.items())
    wants = " and ".join(f"{name} {specifier}" for name, specifier in needs.items())
    raise UsageError(
        f"The cluster at {address} runs {has}; vbp {vbp.__version__} of this machine needs {wants}. Start the "
        "cluster from an environment made with this vbp's requirements.lock, or submit with the vbp that it has."
    )


def _follow(api: JobAPI, job: str, show: Callable[[str], None]) -> tuple[Mapping[str, Any], str]:
    """Show the log until the job has ended; reconnect when the connection is lost.

    Returns:
        The job's last status, and its log.

    Raises:
        InterruptedRunError: the cluster has not answered for `LOST_SECONDS`.
    """
    once, answered = _Once(show), time.monotonic()
    while True:
        once.from_the_beginning()
        try:
            with suppress(Exception):  # the next request shows what went wrong
                asyncio.run(api.tail(job, once.hear))
            status = api.status(job)
            if status["status"] not in RUNNING:
                log = api.log(job)
                once.from_the_beginning()
                once.hear(log)
                return status, log
            answered = time.monotonic()
        except (OSError, HTTPException, ValueError) as error:
            if time.monotonic() - answered > LOST_SECONDS:
                raise InterruptedRunError(
                    f"The cluster at {api.address} does not answer any more ({_reason(error)}); the job may go on. "
                    f"{_how_to_go_on(api.address, job)}"
                ) from error
        time.sleep(1)


class _Once:
    """Shows a text that arrives several times from its beginning, but each piece of it only once."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._shown = self._heard = 0

    def from_the_beginning(self) -> None:
        self._heard = 0

    def hear(self, words: str) -> None:
        new = words[max(0, self._shown - self._heard) :]
        self._heard += len(words)
        self._shown = max(self._shown, self._heard)
        if new:
            self._show(new)


def _exit_code(end: Mapping[str, Any], log: str) -> int:
    """The exit code of a job that has ended.

    Raises:
        UsageError: the cluster could not start the job, because it lacks something.
        InterruptedRunError: the job was stopped or killed.
        VBPError: the job ended in some other way.
    """
    code = end.get("driver_exit_code")
    missing = re.findall(r"ModuleNotFoundError: No module named '([\w.]+)'", log[-20_000:])
    if code == 1 and missing:
        raise UsageError(
            f"The cluster's Python has no {missing[-1]}, which vbp {vbp.__version__} needs: make its environment with "
            "this vbp's requirements.lock."
        )
    if code == 127:
        raise UsageError(
            "The head has no `python` on the PATH of its Ray processes: start Ray with its environment's bin there."
        )
    if code in EXIT_CODES:
        return int(code)
    message = " ".join(str(end.get("message") or "it says no more").split())
    if end["status"] == "STOPPED" or (code is not None and (code < 0 or code > 128)):
        raise InterruptedRunError(f"The job was stopped or killed. Run the same command again to continue. ({message})")
    raise VBPError(f"The job failed: {message}")


def _reason(error: Exception) -> str:
    """The error's message in one line, without the text that Ray or urllib put around it."""
    cause = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
    return " ".join(str(cause).split()).rstrip(".") or type(error).__name__


@contextmanager
def _unset(*names: str) -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ |= before
