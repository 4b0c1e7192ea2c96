"""Reading foreign checkpoint formats and writing models back to them; one file per format."""

from .export import export_checkpoint
from .limits import check_checkpoint
from .processors import load_image_processor, load_tokenizer
from .read import read_checkpoint


__all__ = ["check_checkpoint", "export_checkpoint", "load_image_processor", "load_tokenizer", "read_checkpoint"]
