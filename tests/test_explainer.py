"""The engine: pixels in, masks out, the same whatever came along with them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests import reference
from tests.late_device import LateDevice, PromptDevice
from tests.small_networks import small_vgg
from vbp.errors import ImageError, UsageError
from vbp.explainer import resolve_precision, true_float32
from vbp.networks.model import Model
from vbp.networks.preprocessing import Preprocessing
from vbp.saliency import Explainer, VisualBackProp
from vbp.staging import Staged

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def loaded(network=None, classes=5):
    return Model("small", network or small_vgg(), Preprocessing(MEAN, STD), None, classes, "test", "0" * 64)


def engine(**settings):
    return Explainer(settings.pop("model", loaded()), **{"precision": "float32", "device": "cpu", **settings})


@pytest.mark.parametrize("model", [small_vgg(), small_vgg, None])
def test_a_network_of_ones_own_is_shown_the_way(model):
    with pytest.raises(
        UsageError, match=r"must be a name, such as .* VisualBackProp\(module\), .*steps\.Explain\(module"
    ):
        engine(model=model)


def test_masks_equal_the_oracle(pixels_BHWC):
    network = small_vgg()
    batch = engine(model=loaded(network))(pixels_BHWC)
    layers = reference.layers_of(m for m in network if not isinstance(m, nn.AdaptiveAvgPool2d | nn.Flatten | nn.Linear))
    for i, pixels in enumerate(pixels_BHWC):
        image = (pixels.transpose(2, 0, 1) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
        mask, log10_max = reference.paper_mask(layers, image)
        np.testing.assert_allclose(batch.mask_BHW[i], mask, atol=1e-5)
        assert batch.log10_max_B[i] == pytest.approx(log10_max, abs=1e-5)
    images = (
        torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)
    ) / torch.tensor(STD).view(3, 1, 1)
    np.testing.assert_allclose(batch.logits_BK, network(images).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("channels", ["bgr", "grey"])
def test_a_given_preprocessing_makes_the_input(pixels_BHWC, channels):
    mean, std = ((0.1, 0.5, 0.9), (0.25, 0.5, 1.0)) if channels == "bgr" else ((0.4,), (0.2,))
    network = small_vgg()
    if channels == "grey":
        network[0] = nn.Conv2d(1, 6, 3, padding=1)
    made = engine(model=loaded(network), preprocessing=Preprocessing(mean, std, channels=channels))
    grey = [np.asarray(Image.fromarray(pixels).convert("L"))[..., np.newaxis] for pixels in pixels_BHWC]
    seen_BHWC = pixels_BHWC[..., ::-1] if channels == "bgr" else np.stack(grey)
    images_BHWC = (seen_BHWC / 255 - np.array(mean)) / np.array(std)
    images = torch.from_numpy(np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2))).float()
    expected = VisualBackProp(network)(images)[:, 0]
    np.testing.assert_allclose(made(pixels_BHWC).mask_BHW, expected, atol=1e-5)


def test_another_number_of_channels_is_refused():
    with pytest.raises(UsageError, match=r"channels \(=grey\) make an input of 1, but the network takes 3"):
        engine(preprocessing=Preprocessing((0.5,), (0.5,), channels="grey"))


def test_what_a_batch_holds(pixels_BHWC):
    batch = engine(keep_maps=True)(torch.from_numpy(pixels_BHWC))
    assert batch.mask_BHW.shape == (3, 32, 32)
    assert batch.mask_BHW.dtype == batch.logits_BK.dtype == np.float32
    assert batch.log10_max_B.dtype == np.float64
    assert (batch.flat_B.tolist(), batch.finite_B.tolist()) == ([False] * 3, [True] * 3)
    sizes = [(3, 32, 32), (3, 32, 32), (3, 16, 16), (3, 8, 8)]
    assert [kept.shape for kept in batch.maps] == [kept.shape for kept in batch.masks] == sizes


def test_what_was_not_asked_for_is_none(pixels_BHWC):
    batch = engine(classify=False)(pixels_BHWC)
    assert batch.logits_BK is batch.maps is batch.masks is None
    assert engine(model=loaded(classes=None))(pixels_BHWC).logits_BK is None
    np.testing.assert_array_equal(batch.mask_BHW, engine()(pixels_BHWC).mask_BHW)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_fixed_batch_size_makes_every_mask_independent_of_its_company(pixels_BHWC, precision):
    fixed = engine(batch_size=2, precision=precision, keep_maps=True)
    together = fixed(pixels_BHWC)
    for i in range(3):
        alone = fixed(pixels_BHWC[i : i + 1])
        np.testing.assert_array_equal(alone.mask_BHW[0], together.mask_BHW[i])
        np.testing.assert_array_equal(alone.logits_BK[0], together.logits_BK[i])
        np.testing.assert_array_equal(alone.maps[3][0], together.maps[3][i])
        assert len(alone.mask_BHW) == len(alone.flat_B) == len(alone.masks[0]) == 1


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("settings", [{}, {"precision": "bfloat16"}, {"target": "predicted"}, {"smooth": 2}])
@pytest.mark.parametrize("threads", [1, 3])
def test_side_by_side_is_as_one_after_another(pixels_BHWC, settings, threads, torch_threads):
    many_BHWC = np.concatenate([pixels_BHWC] * 3)[:8]
    expected = engine(batch_size=3, keep_maps=True, **settings)(many_BHWC)
    torch_threads(threads)
    found = engine(batch_size=3, keep_maps=True, side_by_side=True, **settings)(many_BHWC)
    for name in ("mask_BHW", "logits_BK", "log10_max_B"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for one, other in zip(found.maps, expected.maps, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_side_by_side_have_a_thread_each(pixels_BHWC, torch_threads, monkeypatch):
    torch_threads(3)
    seen, all_at_work = [], threading.Barrier(3)
    explain = Explainer._explain

    def watched(self, batch_BHWC):
        all_at_work.wait(timeout=30)  # broken unless three work at the same time
        seen.append((threading.get_ident(), torch.get_num_threads(), len(batch_BHWC)))
        return explain(self, batch_BHWC)

    monkeypatch.setattr(Explainer, "_explain", watched)
    assert len(engine(batch_size=1, side_by_side=True)(pixels_BHWC).mask_BHW) == 3
    assert len({ident for ident, _, _ in seen}) == 3
    assert [(threads, images) for _, threads, images in seen] == [(1, 1)] * 3
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as new:
        assert new.submit(torch.get_num_threads).result() == 3, "threads of others keep theirs"


def test_an_error_side_by_side_is_raised(pixels_BHWC):
    with pytest.raises(ImageError, match="too small"):
        engine(batch_size=1, side_by_side=True)(pixels_BHWC[:, :2, :2])


@pytest.mark.parametrize("settings", [{"target": "predicted"}, {"smooth": 2}, {"pooling": "unpool", "stages": "last"}])
def test_choices_are_those_of_visual_back_prop(pixels_BHWC, settings):
    network = small_vgg()
    chosen = engine(model=loaded(network), batch_size=2, **settings)
    together = chosen(pixels_BHWC)
    images = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    target = settings.pop("target", None)
    expected = VisualBackProp(network, **settings)(images, target=target)[:, 0]
    np.testing.assert_allclose(together.mask_BHW, expected, atol=1e-5)
    for i in range(3):
        np.testing.assert_array_equal(chosen(pixels_BHWC[i : i + 1]).mask_BHW[0], together.mask_BHW[i])


NO_ENGINE = RuntimeError("GET was unable to find an engine to execute this computation")
"""What torch says where cuDNN has no memory for any of its algorithms, and where it has no algorithm at all."""
MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)."),
    NO_ENGINE,
]


def narrow(explainer, most, monkeypatch, error=MEMORY_ERRORS[0]):
    """Let an engine fail as on a GPU whose memory holds so many images and no more; lists what it tries."""
    tried, explain = [], explainer._vbp.explain

    def as_on_a_gpu(images, **settings):
        tried.append(len(images))
        if len(images) > most:
            raise error
        return explain(images, **settings)

    monkeypatch.setattr(explainer._vbp, "explain", as_on_a_gpu)
    return tried


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=str)
@pytest.mark.parametrize("batch_size", [None, 8])
def test_less_at_a_time_where_memory_runs_out(pixels_BHWC, batch_size, error, monkeypatch):
    pixels = np.concatenate([pixels_BHWC] * 3)[:8]
    expected = engine(batch_size=2)(pixels)
    explainer = engine(batch_size=batch_size)
    tried = narrow(explainer, 3, monkeypatch, error)
    np.testing.assert_array_equal(explainer(pixels).mask_BHW, expected.mask_BHW)
    assert tried == [8, 4, 2, 2, 2, 2]
    explainer(pixels)
    assert tried[6:] == [2, 2, 2, 2]


def test_one_image_too_large_for_the_memory_is_told(pixels_BHWC, monkeypatch):
    explainer = engine()
    narrow(explainer, 0, monkeypatch)
    with pytest.raises(ImageError, match="an image of 32x32 pixels needs more memory than the GPU has"):
        explainer(pixels_BHWC)


def test_what_cudnn_cannot_do_for_one_image_is_no_lack_of_memory(pixels_BHWC, monkeypatch):
    explainer = engine(batch_size=4)
    tried = narrow(explainer, 0, monkeypatch, NO_ENGINE)
    with pytest.raises(RuntimeError, match="unable to find an engine"):
        explainer(pixels_BHWC)
    assert tried == [4, 2, 1]


def test_another_error_ends_at_once(pixels_BHWC, monkeypatch):
    explainer = engine(batch_size=8)
    tried = narrow(explainer, 0, monkeypatch, RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        explainer(pixels_BHWC)
    assert len(tried) == 1


def staged(explainer, device):
    """The explainer as on CUDA: its batches go through the streams of a device."""
    explainer._staged = Staged(explainer._compute, device)
    return explainer


@pytest.mark.parametrize("settings", [{}, {"target": "predicted"}, {"smooth": 2}, {"pooling": "unpool"}])
@pytest.mark.parametrize("batch_size", [None, 2, 5])
def test_batches_through_streams_are_as_others(pixels_BHWC, settings, batch_size):
    settings |= {"batch_size": batch_size, "keep_maps": True}
    expected = engine(**settings).arrays(pixels_BHWC)
    pixels_BHWC.flags.writeable = False  # as in Ray's shared memory
    found = staged(engine(**settings), LateDevice()).arrays(pixels_BHWC)
    assert list(found) == list(expected)
    for name in found:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=str)
def test_threads_at_the_same_time_get_their_own_masks_where_memory_runs_out(pixels_BHWC, error, monkeypatch):
    pixels = [np.roll(pixels_BHWC, shift, 1) for shift in range(6)]
    expected = [engine(batch_size=1).arrays(each) for each in pixels]
    explainer = staged(engine(batch_size=8), PromptDevice())
    narrow(explainer, 1, monkeypatch, error)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(explainer.arrays, pixels))
    assert explainer.batch_size == 1
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one["mask"], other["mask"])


def test_what_is_made_of_an_explanation_comes_instead_of_it(pixels_BHWC):
    def finish(pixels_BHWC, found):
        return {"brightest": found.mask.amax((1, 2, 3)), "corner": pixels_BHWC[:, 0, 0]}

    found = engine(batch_size=2, finish=finish).arrays(pixels_BHWC)
    assert set(found) == {"brightest", "corner", "flat", "finite", "log10_max"}
    assert found["brightest"].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(found["corner"], pixels_BHWC[:, 0, 0])


def test_read_only_pixels_are_explained_without_a_warning(pixels_BHWC):
    expected = engine()(pixels_BHWC)
    pixels_BHWC.flags.writeable = False
    np.testing.assert_array_equal(engine()(pixels_BHWC).mask_BHW, expected.mask_BHW)


def test_target_needs_a_classifier():
    with pytest.raises(UsageError, match="target 'predicted' needs a classifier, and small has none"):
        engine(model=loaded(classes=None), target="predicted")


def test_bfloat16_masks_are_close(pixels_BHWC):
    exact, rough = (engine(precision=precision)(pixels_BHWC) for precision in ("float32", "bfloat16"))
    assert np.corrcoef(exact.mask_BHW.ravel(), rough.mask_BHW.ravel())[0, 1] > 0.999
    assert np.abs(exact.mask_BHW - rough.mask_BHW).max() < 0.05


def test_batch_norm_keeps_its_statistics_in_float32(pixels_BHWC):
    network = small_vgg(norm=True)
    explainer = engine(model=loaded(network), precision="bfloat16")
    dtypes = {type(m).__name__: m.weight.dtype for m in explainer._vbp.model.modules() if hasattr(m, "weight")}
    assert dtypes == {"Conv2d": torch.bfloat16, "BatchNorm2d": torch.float32, "Linear": torch.bfloat16}
    assert explainer(pixels_BHWC).finite_B.all()


def test_a_given_model_is_not_changed(pixels_BHWC):
    network = small_vgg()
    engine(model=loaded(network), precision="bfloat16")(pixels_BHWC)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert VisualBackProp(network)(torch.ones(1, 3, 32, 32)).shape == (1, 1, 32, 32)


def test_settings_are_resolved():
    explainer = Explainer(loaded())
    assert explainer.device in ("cpu", "cuda:0")
    assert explainer.precision in ("float32", "bfloat16")
    assert explainer.model.name == "small"


@pytest.mark.parametrize(("limit", "multiplies"), [("", True), ("AVX512_CORE_BF16", True), ("avx512_core", False)])
@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_bfloat16_is_chosen_where_onednn_may_multiply_it(name, limit, multiplies, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv(name, limit)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve_precision("auto", "cpu") == ("bfloat16" if multiplies else "float32")
    assert resolve_precision("bfloat16", "cpu") == "bfloat16"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"device": "abacus"}, "device 'abacus' is none"),
        ({"device": "cuda:99"}, "torch sees . CUDA devices"),
        pytest.param(
            {"device": "mps"},
            "torch finds no Apple GPU",
            marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="this is one"),
        ),
        ({"precision": "float8"}, "precision 'float8' is none of auto, float32, bfloat16"),
        ({"batch_size": 0}, r"batch_size \(=0\)"),
        ({"preset": "p"}, "preset 'p' is none"),
    ],
)
def test_bad_settings_are_named(settings, reason):
    with pytest.raises(UsageError, match=reason):
        engine(**settings)


def test_a_gpu_without_bfloat16_is_named(monkeypatch):
    """As torch on Apple's older GPUs, for which this stands in."""

    def zeros(*shape, dtype, device):
        raise TypeError("BFloat16 is not supported on MPS")

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_precision("auto", "mps") == "float32"
    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(UsageError, match="precision 'bfloat16': device 'mps' has none; give float32 or auto"):
        resolve_precision("bfloat16", "mps")


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (8, 8, 3), (1, 3, 8, 8), (1, 8, 8, 1)])
def test_misshapen_pixels_are_named(shape):
    with pytest.raises(UsageError, match=r"uint8 \(B, H, W, 3\)"):
        engine()(np.zeros(shape, np.uint8))


def test_float_pixels_are_named():
    with pytest.raises(UsageError, match="not float32"):
        engine()(np.zeros((1, 8, 8, 3), np.float32))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_float32_equals_the_cpu_and_leaves_tf32_as_it_was(pixels_BHWC):
    before = torch.backends.cudnn.conv.fp32_precision
    cuda = engine(device="cuda")(pixels_BHWC)
    np.testing.assert_allclose(cuda.mask_BHW, engine()(pixels_BHWC).mask_BHW, atol=1e-5)
    assert torch.backends.cudnn.conv.fp32_precision == before


def tf32_settings():
    """All that torch lets be read, as torch.compile does."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    new = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision
    return *new, torch.backends.mkldnn.matmul.fp32_precision, *old_settings()


def old_settings():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture
def matmul_precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", [None, "highest", "high", "medium"])
def test_tf32_is_off_within_and_as_before_behind(precision, matmul_precision):
    if precision:
        matmul_precision(precision)
    before = tf32_settings()
    with true_float32(torch.device("cuda")):
        assert tf32_settings() == ("ieee", "ieee", "ieee", "ieee", False, False, "highest")
    assert tf32_settings() == before
    with pytest.raises(KeyError), true_float32(torch.device("cuda")):
        raise KeyError
    assert tf32_settings() == before
