"""Memory and time of CLIP's training step with gradient caching, next to the plain step, by the number of pairs.

Every measurement has a process of its own; both kinds of step alternate. See benchmarks/README.md on how to read it.
"""

import argparse
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch
from contrastive_memory import in_a_fresh_process, peak_bytes, resident_bytes
from tqdm import tqdm

import hf_vitfm
from hf_vitfm import CLIPConfig, CLIPModel, contrastive_loss
from hf_vitfm.training.grad_cache import GradientCache


STEPS = ("cached", "plain")
END_OF_TEXT = 49407


def make_batch(pairs: int, image_size: int) -> dict[str, torch.Tensor]:
    """Random images and texts of 77 tokens on the CPU, where a loader leaves them."""
    texts = torch.randint(END_OF_TEXT - 1, (pairs, 77))
    texts[:, -1] = END_OF_TEXT
    return {"pixel_values": torch.randn(pairs, 3, image_size, image_size), "input_ids": texts}


def parts_of(batch: dict[str, torch.Tensor], size: int, device: str) -> Iterator[dict[str, torch.Tensor]]:
    """Chunks of the batch, each put on the device when it is asked for."""
    for start in range(0, len(batch["input_ids"]), size):
        yield {name: values[start : start + size].to(device) for name, values in batch.items()}


def step(model: CLIPModel, batch: dict[str, torch.Tensor], chunk: int | None, device: str) -> float:
    """Forward and backward of a whole batch; its loss. `chunk` None: the plain step."""

    def objective(image, text, log_scale, bias):
        return contrastive_loss(image, text, log_scale.exp(), bias)

    def forward(**inputs):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return model(**inputs)

    if chunk is None:
        outputs = forward(**next(parts_of(batch, len(batch["input_ids"]), device)), return_logits=False)
        loss = objective(outputs.image_embeds, outputs.text_embeds, model.logit_scale, None)
        loss.backward()
        return loss.item()
    cache = GradientCache(model, forward, parts_of(batch, chunk, device), objective)
    for part in parts_of(batch, chunk, device):
        cache.replay(part).backward()
    return cache.loss.item()


def measure(kind: str, pairs: int, settings: dict) -> dict:
    """One step: the loss, seconds, and bytes at the peak above what was held before: weights, gradients and inputs."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    device, image_size, chunk = settings["device"], settings["image_size"], settings["chunk"]
    model = CLIPModel(CLIPConfig.from_variant(settings["variant"], image_size=image_size)).to(device).train()
    step(model, make_batch(2, image_size), 1, device)  # makes the gradients, and loads what kernels need
    batch, is_cuda = make_batch(pairs, image_size), device == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if is_cuda else resident_bytes()
    start = time.perf_counter()
    loss = step(model, batch, chunk if kind == "cached" else None, device)
    seconds = time.perf_counter() - start  # reading the loss has waited for the device
    peak = torch.cuda.max_memory_allocated() if is_cuda else peak_bytes()
    return {"loss": loss, "seconds": seconds, "bytes": peak - before}


def summarize(pairs: int, runs: dict[str, list[dict]]) -> dict:
    """Medians of the times and peaks over the rounds; stops if the losses differ, so the work does."""
    losses = [found["loss"] for measured in runs.values() for found in measured]
    if max(losses) - min(losses) > 1e-2 * max(losses):
        raise RuntimeError(f"The losses of {pairs} pairs differ: {losses}; the comparison would be void.")
    case = {"pairs": pairs, "loss": losses[0]}
    for kind, measured in runs.items():
        seconds = statistics.median(found["seconds"] for found in measured)
        peak = max(found["bytes"] for found in measured)
        case[kind] = {"seconds": seconds, "bytes": peak, "all": measured}
    return case


def describe(settings: dict) -> dict:
    """What runs where."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = (re.findall(r"model name\s*: (.*)", cpuinfo) or [platform.machine()])[0]
    is_cuda = settings["device"] == "cuda"
    hardware = torch.cuda.get_device_name() if is_cuda else f"{cpu}, {settings['threads']} threads"
    versions = {module.__name__: module.__version__ for module in (hf_vitfm, torch)}
    return {"date": date.today().isoformat(), "hardware": hardware, "versions": versions, **settings, "cases": []}


def render(report: dict) -> str:
    """The report as a Markdown table."""
    rows = [["pairs", "step", "peak, MiB", "seconds", "ms per pair"], ["---:", "---", "---:", "---:", "---:"]]
    for case in report["cases"]:
        for kind in STEPS:
            if kind in case:
                seconds, peak = case[kind]["seconds"], case[kind]["bytes"]
                numbers = [f"{peak / 2**20:.0f}", f"{seconds:.3g}", f"{1e3 * seconds / case['pairs']:.3g}"]
                rows.append([f"{case['pairs']:,}", kind, *numbers])
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    precision = "bfloat16 autocast" if report["device"] == "cuda" else "float32"
    title = (
        f"ViT-{report['variant']}, {report['image_size']} px, {precision}, chunks of {report['chunk']}, "
        f"{report['rounds']} rounds; {report['hardware']}; {versions}; {report['date']}."
    )
    return f"{title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--variant", default="B/32", help="default: %(default)s")
    parser.add_argument("--pairs", type=int, nargs="+", default=[32, 64, 128, 256], help="default: %(default)s")
    parser.add_argument(
        "--plain-limit", type=int, default=64, help="plain steps run up to here (default: %(default)s)"
    )
    for name, default in {"image-size": 224, "chunk": 16, "rounds": 1, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/grad_cache_memory_<device>.json")
    args = parser.parse_args()
    if args.device == "cpu" and sys.platform != "linux":
        parser.error("memory on a CPU is measured on Linux only")
    settings = {
        name: getattr(args, name) for name in ("device", "variant", "image_size", "chunk", "rounds", "threads")
    }
    report = describe(settings)
    runs = {
        pairs: {kind: [] for kind in STEPS if kind == "cached" or pairs <= args.plain_limit} for pairs in args.pairs
    }
    progress = tqdm(total=args.rounds * sum(map(len, runs.values())), unit="process")
    for i in range(args.rounds):
        for pairs, measured in runs.items():
            for kind in list(measured)[:: (-1) ** i]:
                progress.set_description(f"{kind}, {pairs} pairs")
                measured[kind].append(in_a_fresh_process(measure, kind, pairs, settings))
                progress.update()
    progress.close()
    report["cases"] = [summarize(pairs, measured) for pairs, measured in runs.items()]
    output = args.output or Path(__file__).parent / "results" / f"grad_cache_memory_{args.device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(render(report))


if __name__ == "__main__":
    main()
