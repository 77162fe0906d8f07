"""Metrics for TensorBoard, beside the CSV."""

from __future__ import annotations

from pathlib import Path

from . import distributed


def summary_writer():
    """TensorBoard's writer class.

    Raises:
        ValueError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("argument -tensorboard: needs `pip install tensorboard`") from error
    return SummaryWriter


class Board:
    """Writes rows of numbers to FOLDER/tensorboard; to nowhere where `folder` is None.

    Of several processes only the first one writes.
    """

    def __init__(self, folder: Path | None):
        writes = folder is not None and distributed.rank() == 0
        self._writer = summary_writer()(str(folder / "tensorboard")) if writes else None

    def add(self, row: dict, step: int) -> None:
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
