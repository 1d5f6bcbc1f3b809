"""Graphs of a function, recorded and launched on a CPU: a launch repeats every operation in the memory of the first."""

import threading
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.late_device import LateDevice
from vbp.saliency import VisualBackProp
from vbp.saliency.prepared.captured import CALLS, GRAPHS, Captured, CudaRecorder
from vbp.staging import Staged

from ..conftest import randomise, small_vgg


class Tape(TorchDispatchMode):
    """All operations within its context, to be repeated."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, result))
        return result

    @torch.inference_mode()
    def launch(self):
        for func, args, kwargs, result in self.done:
            pairs = zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True)
            for before, now in pairs:
                if isinstance(now, torch.Tensor) and now.data_ptr() != before.data_ptr():
                    before.copy_(now)


class Recorder:
    """Stands in for CUDA's graphs."""

    device = "cpu"

    def __init__(self):
        self.launched = self.recorded = self.released = 0
        self.error = None

    def record(self, work):
        self.recorded += 1
        tape = Tape()
        with tape:
            work()
        if self.error:
            raise self.error
        return partial(self._launch, tape)

    def _launch(self, tape):
        self.launched += 1
        tape.launch()

    def release(self):
        self.released += 1


@pytest.fixture
def recorder():
    return Recorder()


def numbers(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def doubled(x):
    return [x * 2, x.flatten(1).sum(1)]


def check(captured, function, shape, seeds):
    for seed in seeds:
        x = numbers(*shape, seed=seed)
        kept = x.clone()
        found = [each.clone() for each in captured(x)]
        assert all(map(torch.equal, found, function(x)))
        assert torch.equal(x, kept)


def test_from_the_third_call_in_a_row_a_graph_is_launched(recorder):
    captured = Captured(doubled, recorder)
    check(captured, doubled, (4, 3), range(CALLS))
    assert (recorder.recorded, recorder.launched) == (0, 0)
    check(captured, doubled, (4, 3), range(5))
    assert (recorder.recorded, recorder.launched) == (1, 5)


def test_another_shape_runs_plainly_and_the_graph_stays(recorder):
    captured = Captured(doubled, recorder)
    check(captured, doubled, (4, 3), range(CALLS + 1))
    check(captured, doubled, (2, 3), range(1))
    check(captured, doubled, (4, 3), range(2))
    assert (recorder.recorded, recorder.launched, recorder.released) == (1, 3, 0)


def test_a_shape_that_stays_gets_a_graph_of_its_own_and_the_first_is_freed(recorder):
    captured = Captured(doubled, recorder)
    for rows in (4, 2):
        check(captured, doubled, (rows, 3), range(CALLS + 2))
    assert (recorder.recorded, recorder.launched, recorder.released) == (2, 4, 1)


def test_shapes_that_keep_changing_end_the_recording(recorder):
    captured = Captured(doubled, recorder)
    for rows in range(1, 8):
        check(captured, doubled, (rows, 3), range(CALLS + 1))
    assert recorder.recorded == GRAPHS


def test_the_log_says_why_also_where_others_were_recorded_before(recorder, caplog):
    captured = Captured(doubled, recorder)
    for rows in range(1, GRAPHS):
        check(captured, doubled, (rows, 3), range(CALLS + 1))
    recorder.error = RuntimeError("not permitted")
    check(captured, doubled, (9, 3), range(CALLS + 1))
    assert caplog.messages == ["no CUDA graph: not permitted"]


def test_where_nothing_can_be_recorded_the_function_runs_and_the_log_says_why_once(recorder, caplog):
    recorder.error = RuntimeError("operation not permitted\n when stream is capturing")
    captured = Captured(doubled, recorder)
    check(captured, doubled, (4, 3), range(6))
    check(captured, doubled, (2, 3), range(6))
    assert (recorder.recorded, recorder.launched, recorder.released) == (1, 0, 1)
    assert caplog.messages == ["no CUDA graph: operation not permitted when stream is capturing"]


def test_a_function_that_waits_is_never_recorded(recorder, caplog):
    def branching(x):
        return [x * 2 if x.sum() > 0 else x]

    check(Captured(branching, recorder), branching, (4, 3), range(6))
    assert recorder.recorded == 0
    assert caplog.messages == ["no CUDA graph: the host waits for _local_scalar_dense"]


def test_whichever_thread_records_has_run_the_function_before(recorder):
    """Libraries of CUDA make what they need for each thread, and cannot do so while a graph is recorded."""
    own, ready = threading.local(), []
    record = recorder.record

    def noted(x):
        own.has_run = True
        return doubled(x)

    def recording(work):
        ready.append(getattr(own, "has_run", False))
        return record(work)

    recorder.record = recording
    captured = Captured(noted, recorder)
    for seed in range(CALLS + 1):
        thread = threading.Thread(target=check, args=(captured, doubled, (4, 3), [seed]))
        thread.start()
        thread.join()
    assert ready == [True]


class Cuda:
    """Stands in for what the recorder takes of `torch.cuda` and its allocator."""

    def __init__(self, error=None):
        self.error, self.done = error, []

    def current_stream(self):
        return "the caller's stream"

    def current_device(self):
        return 1

    def graph_pool_handle(self):
        return (0, 7)

    @contextmanager
    def graph(self, graph, **settings):
        self.done.append(settings)
        yield
        if self.error:
            raise self.error

    def CUDAGraph(self):  # noqa: N802
        return self

    def replay(self):
        self.done.append("launched")

    def end(self, *pool):
        self.done.append(("ended", *pool))

    def release(self, *pool):
        self.done.append(("released", *pool))

    def forget(self):
        self.done.append("workspaces")


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    for name in ("current_stream", "current_device", "graph_pool_handle", "graph", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", cuda.release, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", cuda.forget, raising=False)
    return cuda


def test_cuda_records_on_the_callers_stream(cuda):
    """Torch's own stream for recordings is on the device that recorded first, and stays the current one on failure."""
    launch = CudaRecorder().record(lambda: None)
    launch()
    assert [each for each in cuda.done if each != "workspaces"] == [
        {"pool": (0, 7), "stream": "the caller's stream", "capture_error_mode": "thread_local"}, "launched"
    ]  # fmt: skip


@pytest.mark.parametrize("error", [None, RuntimeError("not permitted")])
def test_a_graph_has_its_own_workspace_of_cublas(cuda, error):
    """Others may free the one that a thread has for a stream, and it would be another's memory then."""
    cuda.error = error
    with pytest.raises(RuntimeError) if error else nullcontext():
        CudaRecorder().record(lambda: cuda.done.append("work"))
    assert [each for each in cuda.done if each in ("workspaces", "work")] == ["workspaces", "work", "workspaces"]


def test_memory_of_a_recording_that_failed_is_given_back(cuda):
    cuda.error = RuntimeError("operation failed due to a previous error during capture")
    with pytest.raises(RuntimeError, match="during capture"):
        CudaRecorder().record(lambda: None)
    assert [each for each in cuda.done if isinstance(each, tuple)] == [
        ("ended", 1, (0, 7)), ("released", 1, (0, 7))
    ]  # fmt: skip


def test_memory_of_a_recording_that_torch_has_ended_is_torchs(cuda, monkeypatch):
    def not_recording(*_):
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", not_recording, raising=False)
    cuda.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        CudaRecorder().record(lambda: None)
    assert not any(isinstance(each, tuple) for each in cuda.done)


def test_an_error_of_the_function_is_the_callers(recorder):
    def failing(x):
        raise ValueError("wrong")

    for _ in range(CALLS):
        with pytest.raises(ValueError, match="wrong"):
            Captured(failing, recorder)(numbers(2, 3, seed=0))


def test_a_graph_gives_way_where_memory_is_short(recorder, caplog):
    full = []

    def hungry(x):
        if len(x) > 4 and not recorder.released:
            full.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return doubled(x)

    captured = Captured(hungry, recorder)
    check(captured, doubled, (4, 3), range(CALLS + 1))
    check(captured, doubled, (8, 3), range(4))
    check(captured, doubled, (4, 3), range(4))
    assert (len(full), recorder.recorded, recorder.released) == (1, 1, 1)
    assert caplog.messages == ["no CUDA graph: the device has too little memory for it"]


def test_without_a_graph_lack_of_memory_is_the_callers(recorder):
    def hungry(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Captured(hungry, recorder)(numbers(2, 3, seed=0))


def test_results_in_a_graphs_memory_are_fetched_before_the_next_launch(recorder):
    """As the explainer calls it: copies of one batch run beside the computation of the next."""
    staged = Staged(Captured(doubled, recorder), LateDevice())
    given = np.random.default_rng(5).integers(0, 256, (8, 4, 3, 5, 3), dtype=np.uint8)
    pending = [staged.begin(pixels, 4) for pixels in given[:3]]
    for number, pixels in enumerate(given):
        twice, total = staged.end(pending[number])
        assert np.array_equal(twice, 2 * pixels)
        assert np.array_equal(total, pixels.reshape(4, -1).sum(1))
        if number + 3 < len(given):
            pending.append(staged.begin(given[number + 3], 4))
    assert recorder.launched == 8 - CALLS


def test_what_a_graph_reads_lives_as_long_as_the_graph(recorder):
    shelf = {"factor": torch.full((3,), 2.0)}
    captured = Captured(lambda x: [x * shelf["factor"]], recorder)
    for seed in range(CALLS + 1):
        captured(numbers(4, 3, seed=seed))
    factor = shelf.pop("factor")
    assert any(each is factor for each in captured._graph.kept)
    (found,) = captured(numbers(4, 3, seed=9))
    assert torch.equal(found, 2 * numbers(4, 3, seed=9))


CHOICES = [{}, {"preset": "reference"}, {"pooling": "unpool"}, {"multiply_input": True}, {"smooth": 2}]


@pytest.mark.parametrize("settings", [*CHOICES, {"target": "predicted"}], ids=str)
def test_masks_of_a_graph_are_equal_to_the_bit(recorder, settings):
    settings = dict(settings)
    target = settings.pop("target", None)
    network = torch.nn.Sequential(*list(small_vgg(norm=True))[:5]) if settings.get("preset") else small_vgg(norm=True)
    vbp = VisualBackProp(randomise(network), **settings)

    def function(images_BCHW):
        with torch.inference_mode():
            found = vbp.explain(images_BCHW, target=target)
            return [found.mask, found.flat, found.finite, found.log10_max, *found.maps, *found.masks]

    check(Captured(function, recorder), function, (2, 3, 32, 40), range(5))
    assert recorder.launched == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("target", [None, "predicted"])
def test_a_gpu_records_and_launches(target, caplog):
    network = small_vgg(norm=True).to("cuda", memory_format=torch.channels_last)
    vbp = VisualBackProp(network)
    vbp.prepare(torch.device("cuda", torch.cuda.current_device()), "float32")

    def function(images_BCHW):
        with torch.inference_mode():
            found = vbp.explain(images_BCHW, target=target)
            return [found.mask, found.flat, found.finite, found.log10_max, found.output]

    captured, stream, equal = Captured(function), torch.cuda.Stream(), []

    def call(seed):
        with torch.cuda.stream(stream):
            images_BCHW = numbers(8, 3, 64, 64, seed=seed).to("cuda").contiguous(memory_format=torch.channels_last)
            found = [each.clone() for each in captured(images_BCHW)]
            equal.append(all(map(torch.equal, found, function(images_BCHW))))

    for seed in range(6):  # each in a thread of its own, as a worker of Ray calls
        thread = threading.Thread(target=call, args=[seed])
        thread.start()
        thread.join()
    assert equal == [True] * 6
    assert captured._graph is not None, caplog.messages
