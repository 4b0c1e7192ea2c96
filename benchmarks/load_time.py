"""Time and memory of loading a ViT and a CLIP model from a folder, by format, next to the libraries that wrote them.

Every measurement has a process of its own; the loaders alternate. See benchmarks/README.md on how to read it.
"""

import argparse
import json
import math
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import transformers
from contrastive_memory import in_a_fresh_process, peak_bytes, resident_bytes
from tqdm import tqdm

import hf_vitfm
from hf_vitfm import CLIPModel, ViTForImageClassification, export_checkpoint


OURS, THEIRS = "hf_vitfm", "transformers"
WARM_UP_LAYERS = 1
MODELS = {"ViT-B/16": ViTForImageClassification, "CLIP ViT-B/32": CLIPModel}
OWN_LIMIT, FOREIGN_LIMIT = 1.2, 2.0  # times what transformers takes for its own format


@dataclass(frozen=True)
class Case:
    """One way to load one model."""

    model: str
    format: str
    loader: str


CASES = (
    Case("ViT-B/16", THEIRS, THEIRS),
    Case("ViT-B/16", THEIRS, OURS),
    Case("ViT-B/16", OURS, OURS),
    Case("ViT-B/16", "timm", OURS),
    Case("ViT-B/16", "timm", "timm"),
    Case("CLIP ViT-B/32", THEIRS, THEIRS),
    Case("CLIP ViT-B/32", THEIRS, OURS),
    Case("CLIP ViT-B/32", OURS, OURS),
    Case("CLIP ViT-B/32", "open_clip", OURS),
    Case("CLIP ViT-B/32", "open_clip", "open_clip"),
)


def folder_of(root: str, name: str, layers: int, file_format: str) -> Path:
    return Path(root, f"{name.replace('/', '-').replace(' ', '-')}-{layers}", file_format)


def write_models(root: str, layers: int) -> dict:
    """Write both models in all formats, with random weights."""
    torch.manual_seed(0)
    towers = {name: {"num_hidden_layers": layers} for name in ("text_config", "vision_config")}
    built = {
        "ViT-B/16": transformers.ViTForImageClassification(
            transformers.ViTConfig(num_hidden_layers=layers, num_labels=1000, layer_norm_eps=1e-6)  # as timm has it
        ),
        "CLIP ViT-B/32": transformers.CLIPModel(transformers.CLIPConfig(**towers)),
    }
    for name, theirs in built.items():
        theirs.save_pretrained(folder_of(root, name, layers, THEIRS))
        ours = MODELS[name].from_pretrained(folder_of(root, name, layers, THEIRS))
        ours.save_pretrained(folder_of(root, name, layers, OURS))
        foreign = next(case.format for case in CASES if case.model == name and case.format not in (OURS, THEIRS))
        export_checkpoint(ours, folder_of(root, name, layers, foreign), format=foreign)
    return {}


def loader_of(case: Case) -> Callable[[Path], torch.nn.Module]:
    """What loads a model from a folder, its library imported."""
    if case.loader == OURS:
        return MODELS[case.model].from_pretrained
    if case.loader == THEIRS:
        return getattr(transformers, MODELS[case.model].__name__).from_pretrained
    if case.loader == "timm":
        import timm

        return lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True)
    import open_clip

    return lambda folder: open_clip.create_model(f"local-dir:{folder}")


def read_once(folder: Path) -> None:
    """Read every file of a folder and keep nothing: each loader then finds its files in memory, whoever ran before it."""
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.read(2**20):
                pass


def measure(case: Case, root: str, layers: int, threads: int) -> dict:
    """Load once, then read every weight once: seconds, bytes at the peak above what was held before, sum of weights."""
    torch.set_num_threads(threads)
    load = loader_of(case)
    load(folder_of(root, case.model, WARM_UP_LAYERS, case.format))  # imports what is imported at first use
    folder = folder_of(root, case.model, layers, case.format)
    read_once(folder)
    before = resident_bytes()
    start = time.perf_counter()
    model = load(folder)
    loaded = time.perf_counter() - start
    total = sum(weight.detach().sum(dtype=torch.float64).item() for weight in model.parameters())
    return {
        "loaded": loaded,
        "seconds": time.perf_counter() - start,
        "bytes": peak_bytes() - before,
        "process_bytes": peak_bytes(),
        "sum": total,
    }


def summarize(case: Case, measured: list[dict]) -> dict:
    """Medians over the rounds."""
    medians = {name: statistics.median(run[name] for run in measured) for name in measured[0]}
    return {"model": case.model, "format": case.format, "loader": case.loader, **medians, "all": measured}


def compare(cases: list[dict]) -> None:
    """Add times and memory relative to transformers' own; stops if the weights differ."""
    baselines = {case["model"]: case for case in cases if case["format"] == case["loader"] == THEIRS}
    for case in cases:
        baseline = baselines[case["model"]]
        if not math.isclose(case["sum"], baseline["sum"], rel_tol=1e-6, abs_tol=1e-3):
            raise RuntimeError(
                f"{case['loader']} loads other weights: their sum is {case['sum']}, {baseline['sum']} elsewhere."
            )
        for name in ("seconds", "bytes", "process_bytes"):
            case[f"times_{name}"] = case[name] / baseline[name]
        if case["loader"] == OURS:
            case["limit"] = OWN_LIMIT if case["format"] in (OURS, THEIRS) else FOREIGN_LIMIT


def describe(args: argparse.Namespace) -> dict:
    """What runs where."""
    import open_clip
    import safetensors
    import timm

    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = (re.findall(r"model name\s*: (.*)", cpuinfo) or [platform.machine()])[0]
    libraries = (hf_vitfm, torch, transformers, safetensors, timm, open_clip)
    settings = {name: getattr(args, name) for name in ("layers", "rounds", "threads")}
    return {
        "date": date.today().isoformat(),
        "hardware": f"{cpu}, {args.threads} threads",
        "versions": {library.__name__: library.__version__ for library in libraries},
        **settings,
        "cases": [],
    }


def render(report: dict) -> str:
    """The report as a Markdown table."""
    head = ["model", "format", "loaded by", "from_pretrained, s", "until read, s", "times", "peak, MiB", "times"]
    rows = [[*head, "process, MiB", "times", "limit"], ["---"] * 3 + ["---:"] * 8]
    for case in report["cases"]:
        rows.append(
            [
                *(case[name] for name in ("model", "format", "loader")),
                f"{case['loaded']:.2f}",
                f"{case['seconds']:.2f}",
                f"{case['times_seconds']:.2f}",
                f"{case['bytes'] / 2**20:.0f}",
                f"{case['times_bytes']:.2f}",
                f"{case['process_bytes'] / 2**20:.0f}",
                f"{case['times_process_bytes']:.2f}",
                str(case.get("limit", "")),
            ]
        )
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    title = (
        f"{report['layers']} layers, {report['rounds']} rounds; {report['hardware']}; {versions}; {report['date']}."
    )
    return f"{title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"layers": 12, "rounds": 15, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/load_time.json")
    args = parser.parse_args()
    if sys.platform != "linux":
        parser.error("memory is measured on Linux only")
    report = describe(args)
    runs = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory(prefix="load_time_") as root:
        for layers in {WARM_UP_LAYERS, args.layers}:
            in_a_fresh_process(write_models, root, layers)
        progress = tqdm(total=args.rounds * len(runs), unit="process")
        for i in range(args.rounds):
            for case in list(runs)[:: (-1) ** i]:
                progress.set_description(f"{case.model}, {case.format} by {case.loader}")
                runs[case].append(in_a_fresh_process(measure, case, root, args.layers, args.threads))
                progress.update()
        progress.close()
    report["cases"] = [summarize(case, measured) for case, measured in runs.items()]
    compare(report["cases"])
    output = args.output or Path(__file__).parent / "results" / "load_time.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(render(report))


if __name__ == "__main__":
    main()
