"""transformers' image processor with the centre crop of torchvision, which timm, open_clip and the code of papers use.

Where an odd number of pixels is cut away, torchvision rounds half of it, to the even number, and transformers cuts it
off: at every other such size they are one pixel apart. The classes have the names of transformers' own, so that what
they save is loaded by any transformers (with its crop).
"""

import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as _CLIPImageProcessorPil


class TorchvisionCrop:
    """For an image processor of either backend: images are arrays or tensors (..., height, width)."""

    rounds_center_crop = True

    def center_crop(self, image, size, **kwargs):
        """Cut `size` out of the middle; images that are smaller are left to transformers, which pads them."""
        height, width = image.shape[-2:]
        if height < size.height or width < size.width:
            return super().center_crop(image, size, **kwargs)
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return image[..., top : top + size.height, left : left + size.width]

    def to_dict(self) -> dict:
        """As transformers', and that this crop is meant, for `load_image_processor`."""
        return {**super().to_dict(), "rounds_center_crop": True}


class CLIPImageProcessor(TorchvisionCrop, transformers.CLIPImageProcessor):
    """transformers' CLIPImageProcessor with torchvision's centre crop."""


class CLIPImageProcessorPil(TorchvisionCrop, _CLIPImageProcessorPil):
    """transformers' CLIPImageProcessorPil with torchvision's centre crop."""


# By backend; without torchvision transformers puts its other class in the place of the first.
PROCESSORS = {"torchvision": CLIPImageProcessor, "pil": CLIPImageProcessorPil}
