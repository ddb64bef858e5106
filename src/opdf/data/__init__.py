"""Datasets by name or path, and the ones that ship with the package."""

from opdf.data.embedded import names as embedded_names
from opdf.data.encode import encode
from opdf.data.load import load_data
from opdf.data.packages import minilm
from opdf.data.task import Task, standard_error

__all__ = ["Task", "embedded_names", "encode", "load_data", "minilm", "standard_error"]
