"""The evaluation transform of the code around MAE and DeiT as an image processor of transformers."""

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .center_crop import PROCESSORS


def resize_and_crop(image_size: int, share: float, backend: str | None = None):
    """Bicubic resize of the short side, centre crop, ImageNet's mean and standard deviation.

    Args:
        image_size: side of the crop in pixels.
        share: that side over the short side of the resized image, in (0, 1].
        backend: "torchvision" or "pil"; by default torchvision where it is installed.
    """
    return PROCESSORS[backend or "torchvision"](
        size={"shortest_edge": int(image_size / share)},
        crop_size={"height": image_size, "width": image_size},
        resample=PILImageResampling.BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
