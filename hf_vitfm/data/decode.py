"""Image files to PIL images, with a reason in words where that fails."""

from pathlib import Path

from PIL import Image, ImageOps


class BadImageError(ValueError):
    """A source that holds no image that can be decoded; the message says why."""


def decode_image(source: str | Path) -> Image.Image:
    """Decode the first frame of an image file and turn it as its EXIF orientation says.

    Args:
        source: path of the file.

    Raises:
        BadImageError: if the file is missing, empty, truncated or no image.
    """
    path = Path(source)
    try:
        if path.stat().st_size == 0:
            raise BadImageError("the file is empty")
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except BadImageError:
        raise
    except Exception as error:  # PIL's readers raise whatever their formats make them
        raise BadImageError(f"{type(error).__name__}: {error}") from error
