"""ImageNet's classes as timm and torchvision list them."""

from pathlib import Path

import timm.data
from torchvision.models import ResNet50_Weights


INFO = Path(timm.data.__file__).parent / "_info"
WNIDS = (INFO / "imagenet_synsets.txt").read_text().split()
TORCHVISION = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
