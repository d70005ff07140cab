"""What measuring in the model costs the first dictionary, and every other, in processor seconds of one thread.

    python benchmarks/downstream.py benchmarks/quality.json    # into results/downstream.json

Sources are those of the config, captured as ``quality.py`` does; the SAEs are untrained, which costs the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from quality import Suite, found
from rows import CACHE, HERE

import apportion as ap
from apportion.activations import capture_to_store, load_documents, load_model
from apportion.downstream import Downstream

RESULTS = HERE / "results" / "downstream.json"
TOKENS, K = 16_384, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--saes", type=int, default=4, help="how many are measured in each model")
    arguments = parser.parse_args()
    suite = Suite.parse(json.loads(arguments.config.read_text()), str(arguments.config))
    torch.set_num_threads(1)
    rows = []
    for name, spec in suite.sources.items():
        model = load_model(found(spec.model, arguments.config.parent))
        documents = [d for p in spec.data for d in load_documents(found(p, arguments.config.parent))][
            :: spec.every
        ]
        store = CACHE / f"store-{name}-{spec.digest()}"
        capture_to_store(model, [spec.module], documents, store, progress=True)
        source = ap.StoreSource(store, heldout=suite.heldout, verify=False)
        sae = ap.SAE(ap.recipe("token_choice").make(source.d_in, suite.expansion * source.d_in, K, 0).sae)
        downstream = Downstream(source, model, limit=TOKENS)
        seconds = []
        for _ in range(arguments.saes):
            began = time.process_time()
            downstream.of(sae)
            seconds.append(time.process_time() - began)
        rows.append({"source": name, "first_s": seconds[0], "other_s": statistics.median(seconds[1:])})
        print(json.dumps(rows[-1]))
    RESULTS.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
