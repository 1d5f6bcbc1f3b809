"""Turn Ray's errors into ours."""

from __future__ import annotations

import re

from ray.exceptions import RayError

from vbp.errors import InterruptedRunError, VBPError


def cause_of(error: Exception) -> Exception:
    """Our own exception, without Ray's wrapper and the advice that Ray adds to its message; else `error`."""
    cause: object = getattr(error, "cause", None)
    if not isinstance(cause, (VBPError, OSError)):
        return error
    own = type(cause)(str(cause).partition("\nFailed to apply UDF transform")[0])
    own.__dict__.update(cause.__dict__)
    return own


def interrupted(error: RayError) -> InterruptedRunError:
    """The exception for a failure of Ray itself, such as the loss of all nodes."""
    return InterruptedRunError(
        f"Ray could not go on: {_said(str(error))} What was finished is kept; run the same command again."
    )


def _said(text: str) -> str:
    """The cause in Ray's message: our own sentence if a worker could not start, else the first line."""
    own = re.findall(r"^vbp\.errors\.\w+: (.+)$", text, re.MULTILINE)
    node = re.search(r"\bip=([\w.:]+)", text)
    return f"on node {node[1]}: {own[-1]}" if own and node else text.splitlines()[0]
