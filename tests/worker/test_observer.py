"""The observer must not change what it measures."""

import gc

import pytest

torch = pytest.importorskip("torch")

from worker_orders import write_spec  # noqa: E402

from autofit.worker.heartbeat import Heartbeat  # noqa: E402
from autofit.worker.meter import Meter  # noqa: E402
from autofit.worker.meter_cpu import CpuBackend  # noqa: E402
from autofit.worker.observer import Observer  # noqa: E402
from autofit.worker.order import read_order  # noqa: E402


def test_no_tensor_of_a_step_stays_on_the_cpu(tmp_path):
    """A small tensor that stays between a step's large ones pins the heap, which then creeps by 0.4 MiB a step."""
    order = read_order(write_spec(tmp_path))
    observer = Observer(order, 0, Heartbeat(tmp_path, 0), Meter(CpuBackend()))
    before = {id(each) for each in gc.get_objects() if torch.is_tensor(each)}
    mask = torch.ones(2, 8)
    observer.add_batch({"input_ids": torch.ones(2, 8), "attention_mask": mask})
    observer.add_loss(torch.tensor(1.5))
    observer.add_loss(torch.tensor(0.5))
    assert observer._step_loss == 2.0
    del mask
    gc.collect()
    assert [each for each in gc.get_objects() if torch.is_tensor(each) and id(each) not in before] == []
