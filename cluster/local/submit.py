"""``ray job submit`` by Ray's SDK: the same options, and the job's own exit code.

python cluster/local/submit.py --address URL --submission-id ID --runtime-env FILE -- COMMAND...
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from pathlib import Path

import yaml
from ray.job_submission import JobStatus, JobSubmissionClient


async def show(client: JobSubmissionClient, job: str) -> None:
    """Print the job's log until it ends."""
    async for lines in client.tail_job_logs(job):
        sys.stdout.write(lines)
        sys.stdout.flush()


def main() -> int:
    """Submit and wait."""
    parser = argparse.ArgumentParser()
    for option in ("--address", "--submission-id", "--runtime-env"):
        parser.add_argument(option)
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    client = JobSubmissionClient(asked.address)
    job = client.submit_job(
        entrypoint=shlex.join(asked.command),
        submission_id=asked.submission_id,
        runtime_env=yaml.safe_load(Path(asked.runtime_env).read_text()),
    )
    asyncio.run(show(client, job))
    info = client.get_job_info(job)
    return 0 if info.status == JobStatus.SUCCEEDED else info.driver_exit_code or 1


if __name__ == "__main__":
    sys.exit(main())
