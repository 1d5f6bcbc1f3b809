"""A device that stands in for CUDA in `vbp.staging`: it does all work as late as it may, and has a clock of its own."""

import threading

import torch

MILLISECONDS = {"in": 4, "work": 10, "out": 6}
"""How long each job of a stream takes; streams are made in this order."""


class Moment:
    """An event of a `LateDevice`."""

    def __init__(self, device):
        self.device, self.job = device, None

    def synchronize(self):
        self.device.waited_for()
        with self.device.lock:
            self.job.run()
            self.device.now = max(self.device.now, self.job.end)


class Job:
    """Work in a stream; it is done when somebody waits for it, or for what comes behind it."""

    def __init__(self, stream, work, after, milliseconds):
        self.before = [stream.last] if stream.last else []
        self.before += [after.job] if after else []
        self.work, self.milliseconds, self.end = work, milliseconds, None
        self.enqueued = stream.device.now
        stream.last = self

    def run(self):
        if self.end is None:
            for job in self.before:
                job.run()
            self.work()
            self.end = max([self.enqueued, *(job.end for job in self.before)]) + self.milliseconds


class Stream:
    def __init__(self, device, milliseconds):
        self.device, self.milliseconds, self.last = device, milliseconds, None


class LateDevice:
    """Stands in for CUDA with a clock of its own: only what events order happens in that order."""

    def __init__(self):
        self.now, self.lock = 0, threading.RLock()
        self.times = iter(MILLISECONDS.values())
        self.pinned_sizes = []

    def stream(self):
        return Stream(self, next(self.times))

    def event(self):
        return Moment(self)

    def enqueue(self, stream, work, after, done):
        with self.lock:
            done.job = Job(stream, work, after, stream.milliseconds)

    def waited_for(self):
        """A caller begins to wait for its results."""

    def empty(self, size):
        return torch.full((size,), 99, dtype=torch.uint8)

    def pinned(self, size):
        self.pinned_sizes.append(size)
        return torch.full((size,), 99, dtype=torch.uint8)


class PromptDevice(LateDevice):
    """The same, but it works at once, so that an error comes where CUDA's would."""

    def enqueue(self, stream, work, after, done):
        with self.lock:
            last = stream.last
            super().enqueue(stream, work, after, done)
            try:
                done.job.run()
            except BaseException:
                stream.last = last
                raise
