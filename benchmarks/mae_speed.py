"""Speed and memory of one MAE pre-training step next to transformers' ViTMAEForPreTraining: forward, loss, backward.

Both models have the same weights, images and noise, live in one process and take turns. See benchmarks/README.md on how
to read it.
"""

import argparse
import itertools
import json
import tempfile
from functools import partial
from pathlib import Path

import torch
import transformers
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from vit_speed import Products, describe, measure, summarize

import hf_vitfm
from hf_vitfm import MAEConfig, MAEForPreTraining
from hf_vitfm.conversion import export_checkpoint
from hf_vitfm.models.modeling_masking import num_visible


MODELS = ("hf_vitfm", "transformers")
PRECISIONS = ("float32", "bfloat16 autocast")
OPERATIONS = {  # where time goes, by what a kernel's name contains; the first that fits
    "attention": ("scaled_dot_product", "softmax"),
    "matrix products": ("mm", "convolution"),
    "GELU": ("gelu",),
    "layer norm": ("layer_norm",),
    "copies and casts": ("copy", "cat", "gather", "index", "scatter", "fill", "zero"),
    "sums (bias gradients)": ("aten::sum",),
}


def build_models(variant: str) -> dict[str, torch.nn.Module]:
    """Ours and transformers' model with the same random weights, in training mode."""
    ours = MAEForPreTraining(MAEConfig.from_variant(variant, norm_pix_loss=True))
    with tempfile.TemporaryDirectory() as folder:
        theirs = transformers.ViTMAEForPreTraining.from_pretrained(export_checkpoint(ours, folder))
    return {"hf_vitfm": ours.train(), "transformers": theirs.train()}


def run_forward(model: torch.nn.Module, autocast: torch.autocast, pixels: torch.Tensor, noise: torch.Tensor):
    with autocast:
        return model(pixels, noise=noise)


def run_step(*args) -> torch.Tensor:
    """Forward, loss and backward; no optimizer. `args` are those of `run_forward`."""
    loss = run_forward(*args).loss
    loss.backward()
    args[0].zero_grad(set_to_none=True)
    return loss.detach()


def make_products(config: MAEConfig, pixels: torch.Tensor, noise: torch.Tensor, dtype: torch.dtype) -> Products:
    """The products that the loss needs: those of our model, and no others."""
    (batch, patches), values = noise.shape, config.num_channels * config.patch_size**2
    visible, width = num_visible(patches, config.mask_ratio), config.hidden_size
    masked, decoder = patches - visible, MAEForPreTraining(config).decoder.encoder
    products = Products(dtype, pixels.device, has_backward=True)
    products.add("patches", (batch * visible, values), (width, values), has_dgrad=False)
    for layer in range(config.num_hidden_layers):
        products.add_layer(("encoder", layer), config, batch, visible + 1)
    products.add("embed", (batch * (visible + 1), width), (config.decoder_hidden_size, width))
    for layer in range(config.decoder_num_hidden_layers):
        is_last = layer == config.decoder_num_hidden_layers - 1
        products.add_layer(("decoder", layer), decoder.config, batch, patches + 1, masked if is_last else None)
    products.add("predict", (batch * masked, config.decoder_hidden_size), (values, config.decoder_hidden_size))
    return products


def saved_bytes(*args) -> int:
    """Bytes that the forward pass keeps for backward, each storage once, parameters left out."""
    parameters, saved = {parameter.untyped_storage().data_ptr() for parameter in args[0].parameters()}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run_forward(*args)  # kept until the end, so that no storage takes the place of another
    del output
    return sum(saved.values())


def peak_bytes(*args) -> int:
    """Most bytes in use at once during one step, beyond those before it: activations, gradients, what kernels ask for."""
    if args[2].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_step(*args)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run_step(*args)
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def profile_step(*args) -> dict[str, float]:
    """Share of one step's time by kind of operation; the profiler's own cost is in it, so small shares are upper bounds."""
    is_cuda = args[2].is_cuda
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]) as recorded:
        run_step(*args)
    shares = dict.fromkeys((*OPERATIONS, "rest"), 0.0)
    for event in recorded.key_averages():
        name = next((kind for kind, parts in OPERATIONS.items() if any(part in event.key for part in parts)), "rest")
        shares[name] += event.self_device_time_total if is_cuda else event.self_cpu_time_total
    total = sum(shares.values())
    return {name: microseconds / total for name, microseconds in shares.items()}


def count_flops(*args) -> int:
    with FlopCounterMode(display=False) as counter:
        run_step(*args)
    return counter.get_total_flops()


def run_case(models: dict, precision: str, data: tuple, rounds: int, progress: tqdm) -> dict:
    """All measurements in one precision; what does not depend on the machine's load comes first."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    device = data[0].device.type
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)
    arguments = {name: (model, autocast, *data) for name, model in models.items()}
    losses = [run_step(*args) for args in arguments.values()]
    if abs(losses[0] - losses[1]) > (1e-4 if dtype == torch.float32 else 1e-2):
        raise RuntimeError(f"The losses differ, {losses}; the comparison would be void.")
    counts = {
        name: {"flops": count_flops(*args), "saved_bytes": saved_bytes(*args), "peak_bytes": peak_bytes(*args)}
        for name, args in arguments.items()
    }
    steps = {name: partial(run_step, *args) for name, args in arguments.items()}
    steps["gemm"] = make_products(models["hf_vitfm"].config, *data, dtype)
    summary = summarize(measure(steps, rounds, device, progress), peers=MODELS[1:])
    images = {name: len(data[0]) / summary["seconds"][name]["median"] for name in MODELS}
    profiles = {name: profile_step(*args) for name, args in arguments.items()}
    return {"precision": precision, "images_per_second": images, **summary, "counts": counts, "profile": profiles}


def as_table(header: list[str], rows: list[list[str]], num_words: int) -> str:
    """Markdown; the first `num_words` columns are words, the others figures."""
    lines = [header, ["---"] * num_words + ["---:"] * (len(header) - num_words), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render(report: dict) -> str:
    """The report as two Markdown tables."""
    header = ["precision", "model", "images/s", "times transformers' images/s", "GEMM share", "GFLOP", "saved, MiB"]
    rows, shares = [], []
    for case in report["cases"]:
        low, median, high = (1 / case["ratio"]["transformers"][name] for name in ("high", "median", "low"))
        for name in MODELS:
            spread, counts = case["gemm_share"][name], case["counts"][name]
            row = [case["precision"], name, f"{case['images_per_second'][name]:.2f}"]
            row.append(f"{median:.2f} ({low:.2f} to {high:.2f})" if name == "hf_vitfm" else "1")
            row.append(f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})")
            row.append(f"{counts['flops'] / 1e9:.1f}")
            row += [f"{counts[key] / 2**20:.0f}" for key in ("saved_bytes", "peak_bytes")]
            rows.append(row)
            shares.append([*row[:2], *(f"{100 * share:.1f} %" for share in case["profile"][name].values())])
    title = f"MAE ViT-{report['variant']}, batch {report['batch']}, {report['rounds']} rounds; {report['hardware']}; "
    title += ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + f"; {report['date']}."
    profiles = as_table(["precision", "model", *report["cases"][0]["profile"]["hf_vitfm"]], shares, 2)
    return f"{title}\n\n{as_table([*header, 'peak, MiB'], rows, 2)}\n\nWhere a step's time goes:\n\n{profiles}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--variant", default="B/16", help="of the encoder: Ti/16, S/16, B/16, L/16, H/14")
    for name, default in {"batch": 8, "rounds": 7, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/mae_speed_<device>.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    models = {name: model.to(args.device) for name, model in build_models(args.variant).items()}
    config = models["hf_vitfm"].config
    pixels = torch.randn(args.batch, config.num_channels, config.image_size, config.image_size, device=args.device)
    noise = torch.rand(args.batch, (config.image_size // config.patch_size) ** 2, device=args.device)
    report = describe(args, modules=(hf_vitfm, torch, transformers))
    progress = tqdm(total=len(PRECISIONS) * (args.rounds + 1) * (len(models) + 1), unit="step")
    for precision in PRECISIONS:
        progress.set_description(precision)
        report["cases"].append(run_case(models, precision, (pixels, noise), args.rounds, progress))
    progress.close()
    output = args.output or Path(__file__).parent / "results" / f"mae_speed_{args.device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(render(report))


if __name__ == "__main__":
    main()
