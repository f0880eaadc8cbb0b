"""coffea: a processor, the FuturesExecutor, and its own triton_wrapper."""

from __future__ import annotations

import awkward as ak
from coffea import processor
from coffea.ml_tools.triton_wrapper import triton_wrapper
from coffea.nanoevents import BaseSchema
from physics import TREE, features, fill, select, weighted
from program import BATCH, arguments, save


class Tagger(triton_wrapper):
    def prepare_awkward(self, x: ak.Array) -> tuple[list, dict]:
        return [["SCORE"], {"X": x}], {}


class Jets(processor.ProcessorABC):
    def __init__(self, url: str, model: str) -> None:
        self.tagger = Tagger(f"triton+grpc://{url}/{model}/1", client_args={"ssl": False}, batch_size=BATCH)

    def process(self, events: ak.Array) -> dict:
        columns = select(events)
        score = self.tagger(ak.from_numpy(features(columns)))["SCORE"]
        return fill(columns, ak.to_numpy(score)[:, 0], weighted)

    def postprocess(self, accumulator: dict) -> dict:
        return accumulator


def main() -> None:
    args = arguments()
    runner = processor.Runner(processor.FuturesExecutor(workers=args.workers, status=False), schema=BaseSchema)
    save(runner({"jets": args.files}, Jets(args.url, args.model), treename=TREE), args.folder)


if __name__ == "__main__":
    main()
