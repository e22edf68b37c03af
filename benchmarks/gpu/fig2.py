"""Columns of the paper's Fig. 2 at full scale, in the minutes that a GPU is there.

    python -m benchmarks.gpu.fig2 --data PARQUETS --out OUT --batch-sizes 1024 512 --minutes 4

Run from the repository's root with PYTHONPATH=src. Takes the profile `paper-cifar10`, prepares
its data from Parquet shards as `smallbatch prepare` would, and packs the result files of each
finished column, without the weights, into OUT/STUDY-mM.tar. No column begins that would not end in
time; what is under way at the end is kept in --work, and the same command goes on from there.
Needs torch, timm, pandas, platformdirs, psutil, pyarrow, pydantic, ruamel.yaml and click. `--toy`
rehearses it on a CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.gpu.fig2_columns import Teller, estimate, pack, summary
from benchmarks.gpu.fig2_data import load_dataset
from smallbatch.config.params import ComputeConfig, load_params
from smallbatch.config.profiles import FOLDER
from smallbatch.errors import Stopped
from smallbatch.execution.column import train_column
from smallbatch.execution.watch import Watch
from smallbatch.placement.placement import place
from smallbatch.protocol.column import plan_column


def main() -> int:
    """Train the columns asked for; 1 if some are not finished."""
    options, clock = _options(), time.monotonic()
    params = load_params(FOLDER / "paper-cifar10.yaml")
    study, base_lrs = params.studies[options.study], params.base_lrs(options.study)
    data = {"source": "parquet", "path": str(options.data)}
    if options.images or options.toy:
        images = options.images or 200
        data |= {"name": "cifar10-toy", "scale": "toy"}
        data |= {"subset": images, "test_subset": max(10, images // 5)}
        data |= {"image_size": 8} if options.toy else {}
    dataset = load_dataset(params.dataset.model_copy(update=data))
    epochs = options.epochs or (2 if options.toy else study.epochs)
    study = study.model_copy(update={"epochs": epochs})
    print(f"[{time.monotonic() - clock:6.1f} s] {dataset.meta}", flush=True)

    compute = ComputeConfig(device="auto", engine="stacked", checkpoint_seconds=30.0)
    missing = 0
    with Watch(max(0.1, 60 * options.minutes - (time.monotonic() - clock))) as watch:
        for m in options.batch_sizes:
            column = plan_column(
                options.study, study, dataset, batch_size=m, base_lrs=base_lrs,
                seeds=range(options.seeds),
            )  # fmt: skip
            needed = estimate(column, options.work, options.rate)
            if needed > watch.left:
                print(f"m={m}: left out, {needed:.0f} s of {watch.left:.0f} s", flush=True)
                missing += 1
                continue
            folder = options.work / "models" / dataset.meta.name / options.study / f"m{m}"
            try:
                train_column(
                    column, folder, placement=place(column, compute),
                    checkpoint_seconds=compute.checkpoint_seconds, work=options.work / "runs",
                    observers=[Teller(clock)], watch=watch,
                )  # fmt: skip
            except Stopped as stopped:
                print(f"m={m}: {stopped}", flush=True)
                return 1
            pack(folder, options.work, options.out / f"{options.study}-m{m}.tar", options.commit)
            print(f"[{time.monotonic() - clock:6.1f} s] m={m}: {summary(folder)}", flush=True)
    return 1 if missing else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.fig2",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet shards")
    parser.add_argument("--out", type=Path, required=True, help="folder for a tar per column")
    parser.add_argument("--work", type=Path, default=Path(".smallbatch/fig2"), help="the rest")
    parser.add_argument("--study", default="resnet8")
    parser.add_argument("--batch-sizes", type=int, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, required=True, help="after which it has ended")
    parser.add_argument("--rate", type=float, default=500_000, help="expected images/s")
    parser.add_argument("--commit", help="of these files, where git does not know it")
    parser.add_argument("--epochs", type=int, help="instead of the profile's")
    parser.add_argument("--images", type=int, help="training images, instead of all")
    parser.add_argument("--toy", action="store_true", help="few images of 8x8, to rehearse")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
