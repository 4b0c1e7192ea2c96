"""The evaluation transform of the code around MAE and DeiT as an image processor of transformers."""

import transformers
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


# By backend; without torchvision transformers puts the other in the place of the first.
VIT_PROCESSORS = {"torchvision": transformers.ViTImageProcessor, "pil": transformers.ViTImageProcessorPil}


def resize_and_crop(image_size: int, share: float, backend: str | None = None):
    """Bicubic resize of the short side, centre crop, ImageNet's mean and standard deviation.

    Where the margin is an odd number of pixels, the processor cuts its smaller half off first; torchvision's rounding
    takes the even half, so that its crop may begin a pixel later.

    Args:
        image_size: side of the crop in pixels.
        share: that side over the short side of the resized image, in (0, 1].
        backend: "torchvision" or "pil"; by default torchvision where it is installed.
    """
    return VIT_PROCESSORS[backend or "torchvision"](
        size={"shortest_edge": int(image_size / share)},
        crop_size={"height": image_size, "width": image_size},
        do_center_crop=True,
        resample=PILImageResampling.BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
