"""Retrieval and zero-shot accuracy of the small CLIP on emoji, over seeds.

Every seed is one whole run of the recipe; the file holds every metric's mean, standard deviation (n - 1) and values:

    python benchmarks/emoji_clip.py
    python benchmarks/emoji_clip.py --holdout 0.2 --results outputs/emoji_holdout.json
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch
import transformers


CONFIG = "recipes/clip/configs/emoji.yaml"
RESULTS = Path("benchmarks/results/emoji_clip.json")
MEASURED = ("recall@", "_rank", "zero_shot", "loss", "train_runtime")


def run(config: str, seed: int, options: list[str], keep: Path | None) -> dict:
    """One run of the recipe; what it measured. Its folder stays where `keep` says."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = keep / f"seed-{seed}" if keep else Path(temporary) / "run"
        command = [sys.executable, "recipes/clip/train.py", config, "--seed", str(seed), *options]
        subprocess.run([*command, "--output_dir", str(directory)], check=True)
        results = json.loads((directory / "all_results.json").read_text())
    return {"seed": seed} | {name: value for name, value in results.items() if any(word in name for word in MEASURED)}


def summarize(runs: list[dict]) -> dict:
    """Mean and standard deviation of every metric over the seeds."""
    summary = {}
    for name in (name for name in runs[0] if name != "seed"):
        values = [run[name] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else None
        summary[name] = {"mean": statistics.mean(values), "standard_deviation": spread, "values": values}
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--holdout", help="evaluate on held-out training rows, to choose settings")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="folder for the runs, which are deleted otherwise")
    args = parser.parse_args()
    if args.holdout and args.results == RESULTS:
        parser.error("--holdout is for choosing settings; give another --results.")
    options = ["--holdout", args.holdout] if args.holdout else []
    runs = []
    for seed in args.seeds:
        runs.append(run(args.config, seed, options, args.keep))
        print(json.dumps(runs[-1]), flush=True)
    found = {
        "config": args.config,
        "evaluated_on": f"{args.holdout} of the training rows, held out" if args.holdout else "eval_split",
        "seeds": args.seeds,
        "metrics": summarize(runs),
        "command": " ".join(["python benchmarks/emoji_clip.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "hardware": f"CPU, {torch.get_num_threads()} threads",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found["metrics"], indent=2))


if __name__ == "__main__":
    main()
