"""Names of data sets as a record may tell them."""

from pathlib import Path

from ..data.samples import SAMPLE_NAMES
from ..data.sources.stream import HUB_ID


LOCAL = "a local path"  # in run.json, in the place of the path


def shareable_source(dataset: str) -> str:
    """The name of a data set as others can open it; a place on this machine is not told."""
    is_here = dataset not in SAMPLE_NAMES and Path(dataset).expanduser().exists()
    return LOCAL if is_here or not (dataset in SAMPLE_NAMES or HUB_ID.fullmatch(dataset)) else dataset
