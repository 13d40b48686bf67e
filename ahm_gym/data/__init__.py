"""Images for pretraining and segmentation: `open_data` finds them, `BatchStream` makes batches of them."""

import ahm_gym._compat  # noqa: F401

from ahm_gym.data.sample import Sample
from ahm_gym.data.sources import open_data
from ahm_gym.data.store import ImageDataset
from ahm_gym.data.stream import BatchStream

__all__ = ["BatchStream", "ImageDataset", "Sample", "open_data"]
