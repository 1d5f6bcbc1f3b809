"""The version of vbp, with the commit in a checkout."""

import subprocess

from click.testing import CliRunner

import vbp
from vbp.cli import main
from vbp.version import described

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C"]


def test_in_a_checkout_the_commit_is_told(tmp_path):
    def git(*arguments):
        done = subprocess.run([*GIT, str(tmp_path), *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert described(tmp_path) == vbp.__version__
    git("init", "-q")
    assert described(tmp_path) == vbp.__version__  # no commit yet
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert described(tmp_path) == f"{vbp.__version__} (commit {commit})"
    (tmp_path / "file").write_text("b")
    assert described(tmp_path) == f"{vbp.__version__} (commit {commit}, changed)"


def test_without_git(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert described(tmp_path) == vbp.__version__


def test_the_command():
    done = CliRunner().invoke(main, ["--version"])
    assert (done.exit_code, done.stdout.startswith(f"vbp {vbp.__version__}")) == (0, True)
