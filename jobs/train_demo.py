"""Train the demo weights: python -m jobs.train_demo [--output FILE] [--seed N] [--epochs N] [--threads N]."""

import argparse
import logging
import time
from pathlib import Path

import torch

from vbp.demo.train import Training, save, train

PACKAGED = Path(__file__).parents[1] / "vbp" / "demo" / "vgg16_demo.safetensors"


def main() -> None:
    """Parse, train, save."""
    parser = argparse.ArgumentParser(description="Train the demo weights; some minutes on two CPU cores.")
    parser.add_argument("--output", type=Path, default=PACKAGED, help="file to write (default: the packaged one)")
    parser.add_argument("--seed", type=int, default=Training.seed, help="of scenes and weights (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=Training.epochs, help="over the scenes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; the weights depend on it")
    arguments = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    start = time.monotonic()
    network = train(Training(seed=arguments.seed, epochs=arguments.epochs), logging.info)
    save(network, arguments.output)
    size = arguments.output.stat().st_size / 1e6
    logging.info("%s: %.2f MB, %.0f s", arguments.output, size, time.monotonic() - start)


if __name__ == "__main__":
    main()
