"""Metrics for TensorBoard, beside the CSV."""

from __future__ import annotations

from pathlib import Path


class Board:
    """Writes rows of numbers to FOLDER/tensorboard; to nowhere where `folder` is None.

    Raises:
        ValueError: tensorboard is not installed.
    """

    def __init__(self, folder: Path | None):
        self._writer = None
        if folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError("argument -tensorboard: needs `pip install tensorboard`") from error
            self._writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, row: dict, step: int) -> None:
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
