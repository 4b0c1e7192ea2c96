"""Which column of a table holds the images, which the labels, and which the captions."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "class", "target")
CAPTION_NAMES = (
    *("caption", "captions", "text", "texts", "txt", "sentence", "sentences"),
    *("title", "description", "alt_text"),
)


def find_image_column(datasets: Any, features: Any, name: str | None) -> str:
    """The column of images: the one named, or the one of type `datasets.Image`, or the one called image or img.

    Raises:
        ValueError: if there is none or several, or the one named holds something else.
    """
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if name is None:
        usual = [column for column in IMAGE_NAMES if column in (typed or features)]
        found = typed if len(typed) == 1 else usual[:1]
        if not found:
            reason = f"several columns of images: {', '.join(typed)}" if typed else "no column of images"
            raise ValueError(f"{reason}; the columns are {', '.join(features)}. Name one as `image_column`.")
        name = found[0]
    if name not in features:
        raise ValueError(f"`image_column` must be one of {', '.join(features)}; got {name!r}.")
    if name not in typed and not _holds_bytes(datasets, features[name]):
        raise ValueError(f"column {name!r} must hold images or encoded bytes; it holds {features[name]}.")
    return name


def _holds_bytes(datasets: Any, feature: Any) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature and feature.keys() <= {"bytes", "path"}
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def find_label_column(datasets: Any, features: Any, name: str | None, image_column: str) -> str:
    """The column of labels: the one named, or called as labels usually are, or the one of type `ClassLabel`.

    Raises:
        ValueError: if there is none or several, or the one named does not exist.
    """
    if name is None:
        usual = [column for column in LABEL_NAMES if column in features and column != image_column]
        typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        found = usual[:1] or (typed if len(typed) == 1 else [])
        if not found:
            reason = f"several columns of class labels: {', '.join(typed)}" if typed else "no column of labels"
            raise ValueError(
                f"{reason}; the columns are {', '.join(features)}. Name one as `label_column`, or open the images "
                "alone with `labels=False`."
            )
        name = found[0]
    if name not in features or name == image_column:
        others = [column for column in features if column != image_column]
        raise ValueError(f"`label_column` must be one of {', '.join(others)}; got {name!r}.")
    return name


def find_caption_column(datasets: Any, features: Any, name: str | None, image_column: str) -> str:
    """The column of captions: the one named, or called caption, or the only one called as captions usually are.

    Args:
        datasets: the library.
        features: of the columns; those with captions hold strings, or lists of strings.
        name: the column; None = by the names in `CAPTION_NAMES`, in capitals or not.
        image_column: the column of images.

    Raises:
        ValueError: if there is none or several, or the one named does not exist or holds something else.
    """
    if name is None:
        usual = [column for column in features if column.lower() in CAPTION_NAMES and column != image_column]
        found = [column for column in usual if _holds_text(datasets, features[column])] or usual
        found = ["caption"] if "caption" in found else found
        if len(found) != 1:
            reason = f"several columns of captions: {', '.join(found)}" if found else "no column of captions"
            raise ValueError(f"{reason}; the columns are {', '.join(features)}. Name one as `caption_column`.")
        name = found[0]
    if name not in features or name == image_column:
        others = [column for column in features if column != image_column]
        raise ValueError(f"`caption_column` must be one of {', '.join(others)}; got {name!r}.")
    if not _holds_text(datasets, features[name]):
        raise ValueError(
            f"column {name!r} must hold captions, as text or as lists of text; it holds {features[name]}."
        )
    return name


def _holds_text(datasets: Any, feature: Any) -> bool:
    if isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view")


def name_columns(datasets: Any, dataset: "Dataset", split: str, wanted: dict[str, str]) -> "Dataset":
    """Rename columns, old name to new, which replace others of the new name, and give the one of images its type."""
    lacking = [name for name in wanted if name not in dataset.column_names]
    if lacking:
        raise ValueError(f"split {split} has no column {lacking[0]!r}; it has {', '.join(dataset.column_names)}.")
    hidden = [name for name in wanted.values() if name in dataset.column_names and name not in wanted]
    dataset = dataset.remove_columns(hidden).rename_columns({old: new for old, new in wanted.items() if old != new})
    feature = dataset.features["image"]
    if not isinstance(feature, datasets.Image) or not feature.decode:
        dataset = dataset.cast_column("image", datasets.Image())
    return dataset
