"""The files of this repository, as the tests of its order see them."""

import ast
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hf_vitfm"
TEXT_SUFFIXES = {"", ".cfg", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def text_files() -> list[Path]:
    """What people read: files in the root and in the source folders, without what running leaves behind."""
    folders = [ROOT / name for name in ("hf_vitfm", "recipes", "tests", "benchmarks", "model_cards", ".ci")]
    paths = [*ROOT.iterdir(), *(path for folder in folders for path in folder.rglob("*"))]
    return sorted(path for path in paths if path.is_file() and path.suffix in TEXT_SUFFIXES)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
