"""Time to build a zero-shot classifier, next to open_clip: a CLIP text tower, many templates, few and many classes.

Both have the same weights and prompts, live in one process and take turns. See benchmarks/README.md on how to read it.
"""

import argparse
import json
import platform
import re
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import open_clip
import torch
import transformers
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from tqdm import tqdm

import hf_vitfm
from hf_vitfm import CLIPModel, ZeroShotClassifier


# 10 styles x 8 sentences of our own; with the names below, texts of 5 to 22 tokens, about 10 on average, as CLIP's have.
STYLES = ("", "large ", "tiny ", "clean ", "dusty ", "painted ", "plastic ", "blurry ", "bright ", "odd ")
SENTENCES = (
    "a {style}{{}}.",
    "this is a {style}{{}}",
    "see the {style}{{}}.",
    "one {style}{{}} on a table",
    "a picture with a {style}{{}} in it.",
    "my {style}{{}}!",
    "the {style}{{}} of a friend",
    "somebody took this picture of a {style}{{}} while walking through the old town on a sunny day.",
)
TEMPLATES = [sentence.format(style=style) for style in STYLES for sentence in SENTENCES]
# Every pair makes a name, of one or two words of one token each.
COLOURS = ("", "red ", "green ", "blue ", "white ", "black ", "yellow ", "brown ", "orange ", "pink ")
THINGS = ("dog", "car", "tree", "house", "boat", "chair", "bird", "bottle", "train", "shoe")
NAMES = [colour + thing for colour in COLOURS for thing in THINGS]
TARGET, TOLERANCE = 5, 1e-5


def build_models(name: str, layers: int | None) -> tuple[CLIPModel, open_clip.CLIP]:
    """Ours and open_clip's with the same random weights; the vision tower, which has no part in this, is small."""
    config = open_clip.get_model_config(name)
    if layers is not None:
        config["text_cfg"]["layers"] = layers
    config["vision_cfg"] = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64, "head_width": 32}
    theirs = open_clip.CLIP(**config).eval()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), Path(folder, "open_clip_pytorch_model.bin"))
        Path(folder, "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        ours = CLIPModel.from_pretrained(folder, source_format="open_clip").eval()
    return ours, theirs


def our_tokenizer(theirs: open_clip.SimpleTokenizer) -> transformers.CLIPTokenizer:
    """Transformers' tokenizer with open_clip's vocabulary, which is OpenAI's; the last two tokens are written otherwise."""
    tokens = [*list(theirs.encoder)[:-2], "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocabulary, list(theirs.bpe_ranks), model_max_length=theirs.context_length)


def measure(builders: dict, rounds: int, progress: tqdm) -> tuple[dict, float]:
    """Seconds of every build in every round, and the largest difference of the weights."""
    seconds, difference = {name: [] for name in builders}, 0.0
    for i in range(rounds):
        weights = {}
        for name in list(builders)[:: (-1) ** i]:
            start = time.perf_counter()
            weights[name] = builders[name]()
            seconds[name].append(time.perf_counter() - start)
            progress.update()
        difference = max(difference, (weights["hf_vitfm"] - weights["open_clip"]).abs().max().item())
    return seconds, difference


def compare(models: tuple, tokenizers: tuple, classes: int, num_templates: int, rounds: int, progress: tqdm) -> dict:
    """One case: a number of classes. open_clip takes as many classes at a time as its own evaluation does, 10."""
    names, templates = NAMES[:classes], TEMPLATES[:num_templates]
    builders = {
        "hf_vitfm": lambda: ZeroShotClassifier.build(models[0], tokenizers[0], names, templates).weights,
        "open_clip": lambda: build_zero_shot_classifier(
            models[1], tokenizers[1], names, templates, num_classes_per_batch=10
        ),
    }
    lengths = [int((ids != 0).sum()) for ids in tokenizers[1]([t.format(name) for name in names for t in templates])]
    seconds, difference = measure(builders, rounds, progress)
    if difference > TOLERANCE:
        raise RuntimeError(f"The weights differ by up to {difference:.1e}; the comparison would be void.")
    ratios = [theirs / ours for ours, theirs in zip(seconds["hf_vitfm"], seconds["open_clip"], strict=True)]
    return {
        "classes": classes,
        "templates": len(templates),
        "rounds": rounds,
        "tokens": {"mean": statistics.mean(lengths), "max": max(lengths)},
        "seconds": {name: {"median": statistics.median(values), "all": values} for name, values in seconds.items()},
        "times_faster": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        "target": TARGET,
        "largest_difference": difference,
    }


def describe(args: argparse.Namespace) -> dict:
    """What runs where."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = (re.findall(r"model name\s*: (.*)", cpuinfo) or [platform.machine()])[0]
    libraries = (hf_vitfm, torch, transformers, open_clip)
    return {
        "date": date.today().isoformat(),
        "hardware": f"{cpu}, {args.threads} threads",
        "versions": {library.__name__: library.__version__ for library in libraries},
        "model": args.model,
        "dtype": "float32",
        **{name: getattr(args, name) for name in ("layers", "threads")},
        "cases": [],
    }


def render(report: dict) -> str:
    """The report as a Markdown table."""
    head = [
        "classes",
        "templates",
        "rounds",
        "tokens, mean",
        "max",
        "ours, s",
        "open_clip, s",
        "times faster",
        "target",
        "difference",
    ]
    rows = [head, ["---:"] * len(head)]
    for case in report["cases"]:
        faster = case["times_faster"]
        rows.append(
            [
                str(case["classes"]),
                str(case["templates"]),
                str(case["rounds"]),
                f"{case['tokens']['mean']:.1f}",
                str(case["tokens"]["max"]),
                *(f"{case['seconds'][name]['median']:.2f}" for name in ("hf_vitfm", "open_clip")),
                f"{faster['median']:.1f} ({faster['low']:.1f} to {faster['high']:.1f})",
                str(case["target"]),
                f"{case['largest_difference']:.0e}",
            ]
        )
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    title = f"Text tower of {report['model']}, {report['dtype']}; {report['hardware']}"
    return f"{title}; {versions}; {report['date']}.\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-32-quickgelu", help="of open_clip; default: %(default)s")
    parser.add_argument("--layers", type=int, help="of the text tower, for a try; default: as the model has")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100], help="up to 100; default: 10 100")
    parser.add_argument(
        "--rounds", type=int, nargs="+", default=[5, 2], help="for each number of classes; default: 5 2"
    )
    for name, default in {"templates": len(TEMPLATES), "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/zero_shot_classifier_cpu.json")
    args = parser.parse_args()
    if len(args.rounds) != len(args.classes):
        parser.error("`--rounds` must be as many numbers as `--classes`")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    models = build_models(args.model, args.layers)
    their_tokenizer = open_clip.SimpleTokenizer()
    tokenizers = (our_tokenizer(their_tokenizer), their_tokenizer)
    report = describe(args)
    with tqdm(total=2 * (1 + sum(args.rounds)), unit="build") as progress:
        compare(models, tokenizers, 2, args.templates, 1, progress)  # to warm up
        for classes, rounds in zip(args.classes, args.rounds, strict=True):
            progress.set_description(f"{classes} classes")
            report["cases"].append(compare(models, tokenizers, classes, args.templates, rounds, progress))
    output = args.output or Path(__file__).parent / "results" / "zero_shot_classifier_cpu.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(render(report))


if __name__ == "__main__":
    main()
