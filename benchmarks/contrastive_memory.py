"""Memory and time of the contrastive loss with its gradients, next to open_clip's ClipLoss, by the number of pairs.

Every measurement has a process of its own; ours and open_clip's alternate. See benchmarks/README.md on how to read it.
"""

import argparse
import json
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import open_clip
import torch
from open_clip.loss import ClipLoss
from torch.nn import functional as F
from tqdm import tqdm

import hf_vitfm
from hf_vitfm import contrastive_loss


LOSSES = {"hf_vitfm": contrastive_loss, "open_clip": ClipLoss()}
LOGIT_SCALE = 100.0  # where CLIP's training ends
WARM_UP_PAIRS = 64


def make_inputs(pairs: int, dim: int, device: str) -> list[torch.Tensor]:
    """Embeddings of unit length, each text near its image, and the scale."""
    image = F.normalize(torch.randn(pairs, dim, device=device), dim=1)
    text = F.normalize(image + 0.2 * torch.randn(pairs, dim, device=device), dim=1)
    return [tensor.requires_grad_() for tensor in (image, text, torch.tensor(LOGIT_SCALE, device=device))]


def resident_bytes() -> int:
    """What this process holds in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    """The most that this process has held in memory since its start."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, pairs: int, dim: int, device: str, threads: int) -> dict:
    """Forward and backward once: the loss, seconds, and bytes at the peak above what was held before, inputs included."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loss_function = LOSSES[name]
    loss_function(*make_inputs(WARM_UP_PAIRS, dim, device)).backward()
    inputs = make_inputs(pairs, dim, device)
    is_cuda = device == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if is_cuda else resident_bytes()
    start = time.perf_counter()
    loss = loss_function(*inputs)
    loss.backward()
    if is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if is_cuda else peak_bytes()
    return {"loss": loss.item(), "seconds": seconds, "bytes": peak - before}


def in_a_fresh_process(function: Callable[..., dict], *arguments) -> dict:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def summarize(pairs: int, runs: dict[str, list[dict]]) -> dict:
    """Medians over the rounds; stops if the losses differ, so the work does."""
    losses = [runs[name][0]["loss"] for name in runs if runs[name]]
    if max(losses) - min(losses) > 1e-2 * max(losses):  # TF32, if it is on, stays below
        raise RuntimeError(f"The losses of {pairs} pairs differ: {losses}; the comparison would be void.")
    case = {"pairs": pairs, "loss": losses[0]}
    for name, measured in runs.items():
        if measured:
            seconds = statistics.median(run["seconds"] for run in measured)
            case[name] = {
                "seconds": seconds,
                "nanoseconds_per_cell": 1e9 * seconds / pairs**2,
                "bytes": max(run["bytes"] for run in measured),
                "all": measured,
            }
    return case


def describe(args: argparse.Namespace) -> dict:
    """What runs where."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = (re.findall(r"model name\s*: (.*)", cpuinfo) or [platform.machine()])[0]
    hardware = torch.cuda.get_device_name() if args.device == "cuda" else f"{cpu}, {args.threads} threads"
    versions = {module.__name__: module.__version__ for module in (hf_vitfm, torch, open_clip)}
    settings = {name: getattr(args, name) for name in ("device", "dim", "rounds", "threads")}
    return {"date": date.today().isoformat(), "hardware": hardware, "versions": versions, **settings, "cases": []}


def render(report: dict) -> str:
    """The report as a Markdown table."""
    rows = [["pairs", "loss", "seconds", "ns per cell", "peak, MiB"], ["---:", "---", "---:", "---:", "---:"]]
    for case in report["cases"]:
        for name in LOSSES:
            if name in case:
                found = case[name]
                numbers = (found["seconds"], found["nanoseconds_per_cell"])
                cells = [f"{number:.3g}" for number in numbers] + [f"{found['bytes'] / 2**20:.0f}"]
                rows.append([f"{case['pairs']:,}", name, *cells])
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    title = f"Width {report['dim']}, float32, {report['rounds']} rounds; {report['hardware']}; {versions}; {report['date']}."
    return f"{title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--pairs", type=int, nargs="+", default=[4096, 8192, 16384, 32768], help="default: %(default)s"
    )
    text = "open_clip runs up to here (default: %(default)s; it needs 16 GiB for 32768)"
    parser.add_argument("--peer-limit", type=int, default=16384, help=text)
    for name, default in {"dim": 512, "rounds": 3, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/contrastive_memory_<device>.json")
    args = parser.parse_args()
    if args.device == "cpu" and sys.platform != "linux":
        parser.error("memory on a CPU is measured on Linux only")
    report = describe(args)
    runs = {
        pairs: {name: [] for name in LOSSES if name == "hf_vitfm" or pairs <= args.peer_limit} for pairs in args.pairs
    }
    progress = tqdm(total=args.rounds * sum(map(len, runs.values())), unit="process")
    for i in range(args.rounds):
        for pairs, measured in runs.items():
            for name in list(measured)[:: (-1) ** i]:
                progress.set_description(f"{name}, {pairs} pairs")
                measured[name].append(in_a_fresh_process(measure, name, pairs, args.dim, args.device, args.threads))
                progress.update()
    progress.close()
    report["cases"] = [summarize(pairs, measured) for pairs, measured in runs.items()]
    output = args.output or Path(__file__).parent / "results" / f"contrastive_memory_{args.device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(render(report))


if __name__ == "__main__":
    main()
