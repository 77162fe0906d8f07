"""Data sets: simulated ones, and public ones that are downloaded once and verified."""

from .files import DataError

__all__ = ["DataError"]
