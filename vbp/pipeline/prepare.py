"""Before any work: find the input, load the network, decide where it runs, and refuse what cannot succeed."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vbp.choices import NAMED_WEIGHTS
from vbp.errors import ImageError, StorageError, UsageError, WeightsError, why_unread
from vbp.networks import names
from vbp.networks.classfile import ClassNames, parse_class_file
from vbp.pipeline.classes import ClassMap, map_classes
from vbp.pipeline.config import RunConfig
from vbp.storage.collections.manifestfile import is_manifest, read_manifest_input
from vbp.storage.collections.tree import (
    HEIF_SUFFIXES,
    IMAGE_SUFFIXES,
    ManifestRow,
    list_tree,
    one_image,
)
from vbp.storage.files import Folder, open_uri, read_uri
from vbp.storage.leftout import LeftOut, in_words

if TYPE_CHECKING:
    from vbp.networks.model import Model
    from vbp.networks.preprocessing import Preprocessing
    from vbp.pipeline.loading import NetworkFacts
    from vbp.storage.manifest.manifest import Manifest

SHARD_SIZE, SMALL_SHARD_SIZE, LEAST_SHARDS = 1024, 16, 32
"""``--shard-size auto``: large shards need little scheduling (about 10 ms a shard), small ones share out evenly."""
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this variable only for programs that are submitted as jobs."""
BATCH_SIZE = {"cpu": 2, "cuda": 128, "mps": 32}
"""``--batch-size auto``: the maps of two images fit into a CPU's cache.  With larger batches every layer's maps are
newly allocated memory, which the system has to clear first (DECISIONS, 2026-11-23)."""


def absolute(config: RunConfig) -> RunConfig:
    """The same configuration with absolute places, so that they do not depend on a worker's working directory.

    Raises:
        UsageError: INPUT or OUTPUT is relative to the folder of a submitted job, which Ray deletes with the job.
    """
    _refuse_the_folder_of_a_job(config)
    fields = ["input", "output"] + ["classes"] * (config.class_file is not None)
    if config.weights not in NAMED_WEIGHTS:
        fields.append("weights")
    places: dict[str, Any] = {n: _absolute(place) for n in fields if (place := getattr(config, n)) is not None}
    if config.evaluation is not None and config.truth is not None:
        places["evaluation"] = dataclasses.replace(config.evaluation, truth=_absolute(config.truth))
    return dataclasses.replace(config, model=names.absolute(config.model), **places)


def _refuse_the_folder_of_a_job(config: RunConfig) -> None:
    if JOB not in os.environ:
        return
    for name, place in (("INPUT", config.input), ("OUTPUT", config.output)):
        if "://" not in place and not os.path.isabs(os.path.expanduser(place)):
            raise UsageError(
                f"{name} (={place}) counts from the folder that Ray made for this job ({os.getcwd()}), of which "
                "nothing is kept: give the URL of a bucket, or an absolute path on a file system that all nodes share."
            )


def _absolute(place: str) -> str:
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def check_input(config: RunConfig) -> None:
    """Refuse a local input that does not exist; an input on a store is checked when it is listed or read.

    Raises:
        UsageError: there is nothing at that place.
    """
    if "://" not in config.input and not os.path.exists(config.input):
        raise UsageError(f"INPUT (={config.input}) does not exist; give a folder of images, or a manifest.")
    is_list = is_manifest(config.input)
    suffixes = image_suffixes(config)
    if os.path.isfile(config.input) and not is_list and one_image(Folder(config.input), suffixes) is None:
        raise UsageError(
            f"INPUT (={config.input}) is no folder, nor an image or manifest by the end of its name; give a "
            f"folder, a .parquet, .csv or .txt file, or an image ({' '.join(suffixes)}, or what --suffixes names)."
        )
    if os.path.isdir(config.input) and is_manifest(config.input):
        raise UsageError(f"INPUT (={config.input}) is a folder with a manifest's name; give one file.")
    if os.path.isdir(config.input):
        with os.scandir(config.input) as entries:
            if not any(entries):
                raise UsageError(f"INPUT (={config.input}) holds no images, nor anything else; is its disk mounted?")


def check_output(config: RunConfig) -> None:
    """Refuse a local output that cannot be a folder.

    Raises:
        UsageError: it is a file, or would lie in one.
    """
    place = config.output
    while "://" not in place and not os.path.lexists(place):
        place = os.path.dirname(place)
    if "://" not in place and not os.path.isdir(place):
        raise UsageError(f"OUTPUT (={config.output}) cannot be a folder: {place} is none; choose another OUTPUT.")


LISTED_EVERY = 1000
"""Images between two reports of a listing's progress."""


def image_suffixes(config: RunConfig) -> tuple[str, ...]:
    """Suffixes of the files that count as images: those of ``--suffixes``, else all that this machine can read."""
    return config.suffixes or (*IMAGE_SUFFIXES, *(HEIF_SUFFIXES if _reads_heif() else ()))


def _reads_heif() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def about_left_out(counts: Mapping[str, int]) -> str:
    """A sentence on the files that a listing left out and how to include them; empty if there are none."""
    if not counts:
        return ""
    wanted = set(HEIF_SUFFIXES) & set(counts) and not _reads_heif()
    heif = " (to read HEIF: pip install 'visualbackprop[heif]')" if wanted else ""
    return f"{in_words(counts)}{heif}"


def list_input(
    config: RunConfig,
    on_progress: Callable[[int], None] = lambda images: None,
    left_out: LeftOut | None = None,
) -> Iterator[ManifestRow]:
    """One row for every image of the tree or the manifest, in listing order, streamed.

    Args:
        config: what to list.
        on_progress: called with the number of images found so far, at intervals and at the end.
        left_out: counts the files that are no images, as the listing goes.

    Raises:
        UsageError: INPUT does not exist, or holds no image.
    """
    left_out, suffixes = left_out or LeftOut(), image_suffixes(config)
    try:
        if is_manifest(config.input):
            rows = read_manifest_input(config.input, config.storage_options)
        else:
            rows = _images(Folder(config.input, config.storage_options), suffixes, left_out)
        first = next(rows, None)
    except FileNotFoundError as error:
        raise UsageError(f"INPUT (={config.input}) does not exist: {error}.") from error
    if first is None:
        raise UsageError(f"INPUT (={config.input}) holds no images: {_why_no_images(config, left_out)}.")
    return _counted(itertools.chain([first], rows), on_progress)


def _images(source: Folder, suffixes: Sequence[str], left_out: LeftOut) -> Iterator[ManifestRow]:
    single = one_image(source, suffixes)
    return list_tree(source, suffixes=suffixes, left_out=left_out) if single is None else iter([single])


def _why_no_images(config: RunConfig, left_out: LeftOut) -> str:
    if is_manifest(config.input):
        return "it has no rows"
    if not left_out.counts:
        return "there is no file in it, nor is it an image or manifest by the end of its name"
    return (
        f"of its files {about_left_out(left_out.counts)}; images end in {' '.join(image_suffixes(config))}, and "
        "--suffixes names others"
    )


def _counted(rows: Iterator[ManifestRow], on_progress: Callable[[int], None]) -> Iterator[ManifestRow]:
    number = 0
    for number, row in enumerate(rows, start=1):
        if number % LISTED_EVERY == 0:
            on_progress(number)
        yield row
    on_progress(number)


def choose_shard_size(config: RunConfig, rows: Iterator[ManifestRow]) -> tuple[int, Iterator[ManifestRow]]:
    """The images of one shard, and all of `rows`; small collections get small shards, so that all workers have work."""
    if config.shard_size is not None:
        return config.shard_size, rows
    first = list(itertools.islice(rows, LEAST_SHARDS * SHARD_SIZE))
    size = max(SMALL_SHARD_SIZE, min(SHARD_SIZE, -(-len(first) // LEAST_SHARDS)))
    return size, itertools.chain(first, rows)


def load_network(config: RunConfig) -> Model:
    """Load the network on this machine's CPU, so that its errors show before any work.

    Raises:
        ModelError: the network cannot be explained.
        WeightsError: the checkpoint cannot be fetched or read, or does not fit.
        UsageError: the configuration needs a classifier, and the network has none.
    """
    from vbp.networks.models import load_model

    with weights_as_usage(config):
        model = load_model(**config.network)
    check_network(config, model)
    return model


@contextmanager
def weights_as_usage(config: RunConfig) -> Iterator[None]:
    """Turn storage errors into a ``WeightsError``: before any work, the user can mend them.

    Raises:
        WeightsError: the store does not give the weights.
    """
    try:
        yield
    except StorageError as error:
        place = f"--model (={config.model})" if names.is_file(config.model) else f"--weights (={config.weights})"
        raise WeightsError(
            f"{place} cannot be read: {why_unread(error)}; look at its address and at the network, or give a file."
        ) from error


def check_network(config: RunConfig, model: Model) -> None:
    """Try the network with the settings of `config`; errors as for `load_network`."""
    import torch

    from vbp.networks.models import check_channels
    from vbp.saliency.visualbackprop import VisualBackProp

    preprocessing = config.preprocessing(model.preprocessing)
    try:
        check_channels(model.network, preprocessing)
    except UsageError as error:
        raise UsageError(f"--{error}") from error
    vbp = VisualBackProp(model.network, method=config.method)
    if config.fit != "original" and (side := preprocessing.size) is not None:
        try:
            vbp(torch.zeros(1, preprocessing.depth, side, side))
        except (ImageError, RuntimeError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())
            raise UsageError(f"--size (={side}) does not suit --model {config.model}: {said}") from error
    if config.evaluation is not None:
        from vbp.pipeline.evaluate import check_evaluation

        check_evaluation(config, model)
    for option, value, without in (("--select", config.select, "all"), ("--target", config.target, "none")):
        if value != without and model.num_classes is None:
            raise UsageError(
                f"{option} {value} needs predictions, and --weights (={config.weights}) has no classifier; "
                f"use a checkpoint with one, or {option} {without}."
            )


def weights_sha256(config: RunConfig) -> str:
    """SHA-256 of the checkpoint file: ``Model.sha256``, but of a sharded checkpoint only its index is hashed.

    Empty if the file cannot be read; loading it then says why.
    """
    try:
        return hashlib.sha256(read_uri(config.weights, config.storage_options)).hexdigest()
    except (OSError, StorageError):
        return ""


def contents_sha256(config: RunConfig, network: NetworkFacts | Model | None = None) -> dict[str, str]:
    """SHA-256 of other files that results depend on, by name in the fingerprint.

    These are the class file, a manifest as INPUT, a truth that is one file, own code, and what that makes. Only of
    what there is; own code is known if the network is loaded.

    Raises:
        UsageError: one of them cannot be read.
    """
    files = {"classes_sha256": config.class_file, "input_sha256": config.input if is_manifest(config.input) else None}
    if config.truth is not None and config.truth.lower().endswith(".json"):
        files["truth_sha256"] = config.truth
    found = {name: _sha256(place, config.storage_options) for name, place in files.items() if place is not None}
    if network is not None and network.code is not None:
        found["code_sha256"] = network.code.sha256
    if network is not None and network.structure_sha256 is not None:
        found["structure_sha256"] = network.structure_sha256
    return found


def _sha256(place: str, options: Mapping[str, Any]) -> str:
    """SHA-256 of a file, read in pieces because a manifest may be larger than memory."""
    try:
        with open_uri(place, options) as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
            return digest.hexdigest()
    except (OSError, StorageError) as error:
        raise UsageError(f"{place} cannot be read: {why_unread(error)}.") from error


def weights_are_missing(config: RunConfig) -> bool:
    """Whether `load_network` would download them.

    Raises:
        WeightsError: there are no such weights for this network.
    """
    if config.weights != "imagenet" or names.source_of(config.model) != "torchvision":
        return False
    from vbp.networks.weights import imagenet_is_here

    return not imagenet_is_here(config.model)


def own_preprocessing(config: RunConfig) -> Preprocessing:
    """The network's own preprocessing, found out without loading it."""
    from vbp.networks.sources.torchvision import preprocessing_of

    return preprocessing_of(config.model, config.weights)


def declared_classes(config: RunConfig) -> ClassNames | str | None:
    """The value of ``--classes``: the names in the file, or ``BY_ORDER``; None if it is not given.

    Raises:
        UsageError: the file cannot be read.
    """
    if config.class_file is None:
        return config.classes
    try:
        return parse_class_file(read_uri(config.class_file, config.storage_options))
    except (OSError, StorageError, ValueError) as error:
        raise UsageError(f"--classes (={config.classes}) cannot be read: {why_unread(error)}.") from error


_DEMO = (
    "--weights demo knows generated shapes only, so its masks and predictions of other images, such as photos, "
    "mean nothing"
)


def choose_classes(
    config: RunConfig,
    num_classes: int | None,
    own: Sequence[str] | None,
    folders: Sequence[str],
    before: Mapping[str, int] | None = None,
) -> ClassMap | None:
    """Which class each folder stands for; None without a classifier.

    Args:
        config: holds ``--classes``, and says whether a match is needed.
        num_classes: outputs of the network; None without a classifier.
        own: the checkpoint's names of the classes, or None.
        folders: first-level folders that hold images.
        before: class number of each folder when the output was begun; kept unless ``--classes`` is given.

    Raises:
        UsageError: the class file cannot be read or does not match; or no rule fits and `config.select` needs one.
    """
    from vbp.networks.sources.torchvision import imagenet_wnids

    if num_classes is None:
        return None
    chosen = map_classes(folders, num_classes, own, imagenet_wnids(), declared_classes(config))
    if not chosen.index and before and set(folders) <= set(before):
        names = chosen.names or [folder for folder, _ in sorted(before.items(), key=lambda item: item[1])]
        chosen = ClassMap(dict(before), names, "folders stand for the classes that they did when the output was begun")
    if config.weights == "demo" and not chosen.index:
        chosen = ClassMap({}, chosen.names, _DEMO if folders else f"{chosen.rule}, and {_DEMO}")
    if config.select != "all" and not chosen.index:
        raise UsageError(f"--select {config.select} needs the class of each image: {chosen.with_advice}.")
    return chosen


def wants_more(config: RunConfig, manifest: Manifest) -> bool:
    """Whether the listing was cut at a limit that is now larger, or went by other suffixes than are asked for."""
    cut = not manifest.complete and (config.limit is None or config.limit > manifest.images)
    return cut or config.suffixes not in (None, manifest.suffixes)


def is_cut_at_limit(config: RunConfig) -> bool:
    """Whether the folders after ``--limit`` stay unknown; those of a local tree are always looked up."""
    return "://" in config.input or is_manifest(config.input)


def class_folders(config: RunConfig, manifest: Manifest) -> Sequence[str]:
    """The first-level folders with images; of the whole local tree even if ``--limit`` has cut the listing short."""
    if manifest.complete or is_cut_at_limit(config):
        return manifest.labels
    rows = _images(Folder(config.input), image_suffixes(config), LeftOut())
    return sorted({row.label for row in rows if row.label is not None})


def choose_device(config: RunConfig) -> str:
    """Cpu, cuda or mps, for a network in this process; mps only with ``--device mps``.

    Raises:
        UsageError: ``--device`` is cuda or mps, and this machine has no such device.
    """
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs a GPU, and torch finds none here; use --device cpu or auto.")
    if config.device == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("--device mps needs an Apple GPU, and torch finds none here; use --device cpu or auto.")
        return "mps"
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def workers_here(device: str) -> int:
    """Workers that Ray would start on this machine: one for each GPU, else one for each CPU."""
    import torch

    return torch.cuda.device_count() if device == "cuda" else os.cpu_count() or 1


def choose_batch_size(config: RunConfig, device: str, before: Mapping[str, Any]) -> int:
    """Images in one forward pass: ``--batch-size``, else as in the run on record on such a device, else a default."""
    kept = before.get("batch_size") if before.get("device") == device else None
    return int(config.batch_size or kept or BATCH_SIZE[device])
