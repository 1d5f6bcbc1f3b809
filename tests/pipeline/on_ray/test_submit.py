"""Submitting to a cluster: what is refused beforehand, and how the end of a job is reported. No Ray."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

import vbp
from vbp.errors import InterruptedRunError, UsageError, VBPError
from vbp.pipeline import RunConfig
from vbp.pipeline.on_ray import submit

TOKEN = "0123456789abcdef"
HERE, THERE = "s3://bucket/photos", "s3://bucket/out"


@contextmanager
def job_api(answers, token=None):
    """A server that answers paths with JSON or a code; like Ray's, 401 without a token and 403 with another."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            given, answer = self.headers.get("Authorization"), answers.get(self.path, 404)
            if token is not None and given != f"Bearer {token}":
                answer = 401 if given is None else 403
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            if not isinstance(answer, int):
                self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def refusal(address, **fields):
    with pytest.raises(UsageError) as caught:
        submit.submit(RunConfig(**{"input": HERE, "output": THERE, **fields}), address, as_json=False, show=print)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"input": "photos"}, "INPUT (=photos)"),
        ({"output": "~/out"}, "OUTPUT (=~/out)"),
        ({"weights": "model.safetensors"}, "--weights (=model.safetensors)"),
        ({"classes": "names.txt"}, "--classes (=names.txt)"),
        ({"model": "net.onnx"}, "--model (=net.onnx)"),
    ],
)
def test_a_path_of_this_machine_is_refused_before_anybody_is_asked(fields, name):
    message = refusal("http://127.0.0.1:1", **fields)
    assert message.startswith(
        f"{name} is a path of this machine, and the cluster at http://127.0.0.1:1 does not see it"
    )
    assert "bucket" in message


def test_urls_names_and_absolute_paths_are_the_clusters():
    fields = {"input": "/shared/photos", "output": "/shared/out", "weights": "demo", "classes": "s3://bucket/names"}
    submit.check_places(RunConfig(**fields), "http://head:8265")


def test_what_a_laptop_can_know_is_refused_there():
    assert "would put a secret into logs" in refusal(
        "http://127.0.0.1:1", storage_options={"s3://bucket": {"secret": "x"}}
    )
    assert "--runner local" in refusal("http://127.0.0.1:1", runner="local")


def test_nobody_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    message = refusal(f"127.0.0.1:{port}")
    assert f"--address (=http://127.0.0.1:{port}) does not answer" in message
    assert "ssh -L 8265:127.0.0.1:8265 HEAD" in message


def test_somebody_who_does_not_answer(monkeypatch):
    monkeypatch.setattr(submit, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "timed out" in refusal(f"127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("answers", [{}, {"/api/version": 500}, {"/api/version": b"<html>"}, {"/api/version": {}}])
def test_somebody_else_there(answers):
    with job_api(answers) as address:
        assert f"--address (={address})" in refusal(address)


def test_the_token_is_named_where_it_is_missing_or_wrong(monkeypatch):
    with job_api({"/api/version": {"ray_version": "2.60.0"}}, TOKEN) as address:
        message = refusal(address)
        assert message.startswith(f"The cluster at {address} asks for a token, and there is none here. Put")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
        assert f"The cluster at {address} refuses the token that is set here. Put" in refusal(address)


@pytest.mark.parametrize("place", ["variable", "file", "home"])
def test_the_token_is_found_where_ray_looks_for_it(place, monkeypatch, tmp_path):
    if place == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    elif place == "file":
        (tmp_path / "secret").write_text(f"{TOKEN}\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "secret"))
    else:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    with job_api({"/api/version": {"ray_version": "2.60.0"}}, TOKEN) as address:
        submit.JobAPI(address).check_versions()


@pytest.mark.parametrize(
    ("ray", "python", "words"),
    [
        ("2.40.0", "3.11.7", "runs Ray 2.40.0 and Python 3.11.7"),
        ("2.60.0", "3.9.1", "runs Ray 2.60.0 and Python 3.9.1"),
    ],
)
def test_another_version_is_refused_and_both_are_named(ray, python, words):
    answers = {"/api/version": {"ray_version": ray}, "/api/v0/cluster_metadata": {"data": {"pythonVersion": python}}}
    with job_api(answers) as address:
        message = refusal(address)
    assert words in message
    assert f"vbp {vbp.__version__} of this machine needs Ray <2.64,>=2.60 and Python >=3.11" in message


def test_little_travels():
    assert 1e6 < submit.package_bytes() < 4e6


def test_a_job_with_the_same_command_that_has_not_ended_is_found():
    jobs = [
        {"submission_id": "a", "entrypoint": "x", "status": "FAILED"},
        {"submission_id": "b", "entrypoint": "y", "status": "RUNNING"},
        {"submission_id": None, "entrypoint": "x", "status": "RUNNING"},
        {"submission_id": "c", "entrypoint": "x", "status": "RUNNING"},
    ]
    with job_api({"/api/version": {"ray_version": "2.60.0"}, "/api/jobs/": jobs}) as address:
        api = submit.JobAPI(address)
        assert api.running("x") == "c"
        assert api.running("z") is None


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_the_jobs_exit_code_is_passed_on(code):
    assert submit._exit_code({"status": "FAILED", "driver_exit_code": code}, "") == code


@pytest.mark.parametrize(
    ("end", "log", "kind", "words"),
    [
        ({"status": "STOPPED", "driver_exit_code": None}, "", InterruptedRunError, "stopped or killed. Run the same"),
        ({"status": "FAILED", "driver_exit_code": -9}, "", InterruptedRunError, "stopped or killed"),
        ({"status": "FAILED", "driver_exit_code": 127}, "", UsageError, "no `python` on the PATH"),
        (
            {"status": "FAILED", "driver_exit_code": 1},
            "Traceback\nModuleNotFoundError: No module named 'obstore'\n",
            UsageError,
            "The cluster's Python has no obstore",
        ),
        (
            {"status": "FAILED", "driver_exit_code": None, "message": "runtime_env setup failed:\n no space"},
            "",
            VBPError,
            "The job failed: runtime_env setup failed: no space",
        ),
    ],
)
def test_another_end_is_a_sentence(end, log, kind, words):
    with pytest.raises(VBPError, match=words) as caught:
        submit._exit_code(end, log)
    assert type(caught.value) is kind


class Script:
    """A job API that tells its log and status as written down; each entry of `rounds` is one connection."""

    address = "http://head:8265"

    def __init__(self, rounds):
        self._rounds, self._round = list(rounds), None

    async def tail(self, job, heard):
        self._round = self._rounds.pop(0)
        for words in self._round[0]:
            heard(words)
        raise ConnectionError("cut off")

    def status(self, job):
        if self._round[1] is None:
            raise ConnectionError("no route to host")
        return {"status": self._round[1], "driver_exit_code": 0}

    def log(self, job):
        return "one\ntwo\nthree\n"


@pytest.fixture
def quick(monkeypatch):
    now = iter(range(0, 10_000, 50))
    monkeypatch.setattr(submit, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=lambda: next(now)))


def test_a_connection_that_is_lost_is_taken_up_again_and_no_line_shown_twice(quick):
    shown = []
    api = Script([(["one\n"], "RUNNING"), ([], None), (["one\n", "two\nth"], "RUNNING"), (["one\ntwo\n"], "SUCCEEDED")])
    end, log = submit._follow(api, "job", shown.append)
    assert end["status"] == "SUCCEEDED"
    assert "".join(shown) == log == "one\ntwo\nthree\n"


def test_a_cluster_that_stays_away_is_given_up_with_the_command_to_follow(quick):
    with pytest.raises(InterruptedRunError) as caught:
        submit._follow(Script([([], None)] * 9), "job", print)
    message = str(caught.value)
    assert "the job may go on" in message
    assert "the same command again, or `ray job logs job --address http://head:8265 --follow`" in message
    assert "`ray job stop job --address http://head:8265`" in message


def test_ctrl_c_leaves_the_job_and_says_so(monkeypatch):
    class Api(Script):
        def __init__(self, address):
            super().__init__([])

        def check_versions(self):
            pass

        def running(self, entrypoint):
            assert entrypoint == "python -m vbp.cli explain --json --device=cuda -- s3://bucket/photos s3://bucket/out"

        def submit(self, entrypoint, code):
            return "vbp-1"

        async def tail(self, job, heard):
            raise KeyboardInterrupt

    monkeypatch.setattr(submit, "JobAPI", Api)
    config = RunConfig(input=HERE, output=THERE, device="cuda")
    with pytest.raises(InterruptedRunError, match="The job goes on without this terminal.*ray job stop vbp-1"):
        submit.submit(config, "http://head:8265", as_json=True, show=print)
