"""Where files may lie: on a local disk, or in a Google Cloud Storage bucket (gs://BUCKET/...).

A run folder and the weights that a run starts from may lie in a bucket. Data are read here and there and models through
memory maps, so those are local.
"""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
from etils import epath

MUST_BE_LOCAL = "must be on a local disk; copy it there, as with gcloud storage rsync --recursive"
_BUCKET = "gs://"


def in_bucket(path: epath.PathLike) -> bool:
    """Whether `path` is no local one."""
    return "://" in os.fspath(path)


def anywhere(path: epath.PathLike) -> epath.Path:
    """`path`, absolute, with pathlib's methods.

    Raises:
        ValueError: it lies in a bucket, and what reads buckets is not installed or does not know this kind.
    """
    if not in_bucket(path):
        return epath.Path(path).absolute()
    if not os.fspath(path).startswith(_BUCKET):
        raise ValueError(f"{path}: give a local path or {_BUCKET}BUCKET/FOLDER")
    try:
        fsspec.get_filesystem_class("gs")
    except ImportError as error:
        raise ValueError(f"{path}: {_BUCKET} needs the package gcsfs: pip install 'care_jax[gcs]'") from error
    return epath.Path(path)


def on_disk(path: epath.PathLike, name: str) -> Path:
    """`path`, which must be local; `name` is that of its flag or config key.

    Raises:
        ValueError: it lies in a bucket.
    """
    if in_bucket(path):
        raise ValueError(f"{name}={path}: {MUST_BE_LOCAL}")
    return Path(path)
