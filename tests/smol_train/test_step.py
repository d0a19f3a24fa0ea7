"""The sums that a micro-batch reports."""

import math

import torch

from smol_train.step import masked_sum, sums_by_dataset


def report(losses: list[float], mask: list[float], datasets: list[int]) -> dict[str, torch.Tensor]:
    total, count, told = masked_sum(torch.tensor([mask]), torch.tensor(datasets, dtype=torch.int32), torch.tensor([losses]))
    torch.testing.assert_close(torch.stack([total, count]), told["loss_and_targets"].sum(0), equal_nan=True)
    assert count.dtype == torch.int  # for the schedule's integer buffer
    return told


def test_windows_are_summed_by_their_dataset_over_micro_batches() -> None:
    first = report([1, 2, 3, 4, 5, 6], [1, 1, 0, 1, 1, 1], [2, 0])
    second = report([10, 20, 30, 40, 50, 60], [0, 0, 0, 1, 0, 1], [0, 2])
    assert sums_by_dataset([first, second], 4).tolist() == [[15, 3], [0, 0], [103, 4], [0, 0]]


def test_the_nan_of_one_dataset_stays_its_own() -> None:
    sums = sums_by_dataset([report([1, math.nan, 2, 3], [1, 1, 1, 1], [0, 1])], 2)
    assert math.isnan(sums[0, 0]) and sums[1].tolist() == [5, 2]
