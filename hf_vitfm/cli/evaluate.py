"""Evaluate models on a suite of data sets: zero-shot, their own classifier, linear probe, few-shot and nearest neighbours.

Data sets that are given (--data NAME=PATH) or can be had are evaluated, the others are named with the reason. What an
earlier run into the same --output found is not computed again. Results go to results.json, results.csv, results.md
and, with --baseline, to a chart of zero-shot scores less the baseline's linear probes.

  hf-vitfm evaluate sample emoji-clip fashion-mae
  hf-vitfm evaluate clip27 MODEL --data pets=FOLDER --data dtd=FOLDER --baseline microsoft/resnet-50
"""

import argparse
import sys

from .options import count, find_device, positive


SUMMARY = "measure models on a suite of data sets, and draw up tables and a chart"
_TASKS = ("zero_shot", "classification", "linear_probe", "few_shot", "knn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("suite", help="clip27, vtab1k, imagenet, sample, or a .yaml file of the same form")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="Hub id, folder or weight file of a vision model")
    parser.add_argument(
        "--data", action="append", default=[], type=_named, metavar="NAME=PATH", help="a local copy of a data set"
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="evaluate this data set alone")
    parser.add_argument(
        "--tasks", type=_tasks, default=_TASKS, metavar="TASK,...", help=f"some of {', '.join(_TASKS)} (all)"
    )
    parser.add_argument("--baseline", metavar="MODEL", help="its linear probes are what zero-shot is compared with")
    for name, what in (("classnames", "class names, one a line"), ("templates", 'prompts with "{}" for the name')):
        parser.add_argument(
            f"--{name}", action="append", default=[], type=_named_or_all, metavar="[NAME=]FILE", help=f"file of {what}"
        )
    parser.add_argument("--output", default="outputs/evaluate", help="folder for results (%(default)s)")
    parser.add_argument("--cache-dir", help="folder that keeps features (cache below --output)")
    parser.add_argument("--batch-size", type=positive, default=64, help="images per forward pass (%(default)s)")
    parser.add_argument("--num-workers", type=count, default=0, help="processes that decode (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ... (%(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the models (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="compute again what is there already")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; returns 1 if a model, a data set or a task failed, else 0."""
    import torch

    from ..evaluation.suite_report import write_report
    from ..evaluation.suite_runner import DONE, SuiteOptions, run_suite
    from ..evaluation.suite_tasks import FeatureOptions
    from ..evaluation.suites import load_suite

    if arguments.baseline and not {"zero_shot", "linear_probe"} <= set(arguments.tasks):
        raise ValueError("`--baseline` compares zero_shot with linear_probe: --tasks must have both.")
    suite = load_suite(arguments.suite)
    rows = suite.select(arguments.only or suite.names)
    cache = arguments.cache_dir or f"{arguments.output}/cache"
    options = SuiteOptions(
        tasks=arguments.tasks,
        data=dict(arguments.data),
        classnames=dict(arguments.classnames),
        templates=dict(arguments.templates),
        features=FeatureOptions(arguments.batch_size, arguments.num_workers, cache),
        dtype=getattr(torch, arguments.dtype),
        device=find_device(arguments.device),
        overwrite=arguments.overwrite,
    )
    # The baseline is a model of the run too.
    models = list(dict.fromkeys([*arguments.models, *([arguments.baseline] if arguments.baseline else [])]))
    found = run_suite(suite, rows, models, arguments.output, options, _say)
    files = write_report(arguments.output, suite, rows, found, models, arguments.baseline)
    if not any(result["status"] == DONE for result in found.results) and found.is_whole:
        raise ValueError(f"nothing could be evaluated; {files[2]} names the reasons. Give data with --data NAME=PATH.")
    print(files[2].read_text(encoding="utf-8"))
    print("\n".join(map(str, files)))
    return 0 if found.is_whole else 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, path


def _named_or_all(text: str) -> tuple[str, str]:
    return _named(text) if "=" in text else ("", text)


def _tasks(text: str) -> tuple[str, ...]:
    tasks = tuple(dict.fromkeys(text.split(",")))
    unknown = [task for task in tasks if task not in _TASKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_TASKS)}")
    return tasks
