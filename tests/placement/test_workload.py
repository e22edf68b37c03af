"""What a workload says of its images."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time

import psutil
import pytest

from smallbatch.config.params import ComputeConfig
from smallbatch.placement.placement import place, workload_of
from smallbatch.placement.trying import vmap_works
from smallbatch.placement.workload import Workload, noise, training_flops_of
from smallbatch.protocol.column import plan_column
from tests.engines.lanes.test_trainer import study
from tests.noise import make_dataset

WIDE = Workload("alexnet", "none", None, False, "float32", 3, 24, 40, 10, 4, 4, "cpu", 1)


def test_images_need_not_be_squares() -> None:
    data = make_dataset(n=12, test=4, size=(24, 40), channels=3)
    column = plan_column(
        "s", study("alexnet"), data, batch_size=4, base_lrs=[0.01, 0.02], seeds=[0]
    )
    compute = ComputeConfig(device="cpu", engine="stacked", workers=1)
    found = workload_of(column, compute)
    assert (found.image, found.key.split()[3]) == ((3, 24, 40), "3x24x40")
    assert place(column, compute).engine == "stacked"


def test_their_noise_and_operations_have_their_shape() -> None:
    assert noise(WIDE, 2).train_images.shape == (2, 3, 24, 40)
    high = dataclasses.replace(WIDE, height=40, width=24)
    square = dataclasses.replace(WIDE, width=24)
    assert training_flops_of(WIDE) == training_flops_of(high) > training_flops_of(square)


def test_each_optimiser_has_a_workload_of_its_own() -> None:
    """Speeds measured for one do not stand for another; plain SGD's key is as it always was."""
    names = ("sgd", "momentum", "nesterov", "adamw")
    keys = [dataclasses.replace(WIDE, optimizer=name).key for name in names]
    assert len(set(keys)) == len(names)
    assert keys[0] == "alexnet none float32 3x24x40 10 classes m=4 4 lanes cpu 1 workers"
    assert keys[3] == keys[0].replace("float32", "float32 adamw")


def test_other_models_are_tried_on_such_images() -> None:
    assert vmap_works("test_resnet", "batch", 3, (3, 24, 40), 4, None)


def test_a_large_model_is_tried_beside_a_pool_of_threads() -> None:
    """The first weights of more than 2¹⁵ numbers that a forked process filled made it hang."""
    code = (
        "import torch\n"
        "from smallbatch.placement import trying\n"
        "torch.set_num_threads(2)\n"
        "torch.zeros(2**20)\n"  # starts the pool
        "trying.CHILD_S = 60\n"
        "print(trying.vmap_works('resnet18', 'batch', 3, (3, 32, 32), 2, None))\n"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "True\n"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_trial_ends_with_the_command_that_made_it(end: signal.Signals) -> None:
    code = (
        "import os, time\n"
        "from smallbatch.placement import trying\n"
        "def hang():\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(300)\n"
        "trying.in_a_child(hang)\n"
    )
    command = [sys.executable, "-P", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(end)
        parent.wait(timeout=20)
        deadline = time.monotonic() + 10
        while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
