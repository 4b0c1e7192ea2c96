"""Speed of a Vision Transformer next to transformers and timm: inference and training steps, float32 and bfloat16.

All models have the same weights, live in one process and take turns. See benchmarks/README.md on how to read it.
"""

import argparse
import json
import platform
import re
import statistics
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path

import timm
import torch
import transformers
from torch.nn import functional as F
from tqdm import tqdm

import hf_vitfm
from hf_vitfm import ViTConfig, ViTForImageClassification
from hf_vitfm.conversion import export_checkpoint


TIMM_MODELS = {"Ti": "vit_tiny", "S": "vit_small", "B": "vit_base", "L": "vit_large"}
TIMM_NAMES = {  # ours -> timm's, applied in this order
    "patch_embeddings.projection": "patch_embed.proj",
    "position_embeddings": "pos_embed",
    "vit.embeddings.": "",
    "vit.encoder.layers": "blocks",
    "vit.layernorm": "norm",
    "attention.": "attn.",
    "classifier": "head",
}
PEERS = ("transformers", "timm")
PRECISIONS = ("float32", "bfloat16 autocast", "bfloat16 weights")  # in this order: the last converts the models


def build_models(variant: str) -> dict[str, torch.nn.Module]:
    """Ours, transformers' and timm's model with the same random weights."""
    ours = ViTForImageClassification(ViTConfig.from_variant(variant, num_labels=1000, head_init="trunc_normal"))
    with tempfile.TemporaryDirectory() as folder:
        theirs = transformers.ViTForImageClassification.from_pretrained(export_checkpoint(ours, folder))
    size, patch = variant.split("/")
    peer = timm.create_model(f"{TIMM_MODELS[size]}_patch{patch}_224")
    state_dict = ours.state_dict()
    for our_name, timm_name in TIMM_NAMES.items():
        state_dict = {name.replace(our_name, timm_name): tensor for name, tensor in state_dict.items()}
    peer.load_state_dict(state_dict)
    return {"hf_vitfm": ours, "transformers": theirs, "timm": peer}


@torch.no_grad()
def check_equal(models: dict[str, torch.nn.Module], pixels: torch.Tensor) -> None:
    """Stop unless all models give the same logits, so do the same work."""
    outputs = {name: model.eval()(pixels[:1]) for name, model in models.items()}
    for name, output in outputs.items():
        difference = getattr(output, "logits", output) - outputs["hf_vitfm"].logits
        if difference.norm() > 1e-2 * outputs["hf_vitfm"].logits.norm():  # TF32, the default on a GPU, stays below
            raise RuntimeError(f"The logits of {name} differ from ours; the comparison would be void.")


def run_step(model: torch.nn.Module, autocast: torch.autocast, pixels: torch.Tensor, labels: torch.Tensor) -> None:
    """Inference or, with a model in training mode, forward, loss and backward; no optimizer."""
    with torch.set_grad_enabled(model.training), autocast:
        if not model.training:
            model(pixels)
        elif isinstance(model, transformers.PreTrainedModel):
            loss = model(pixels, labels=labels).loss
        else:
            loss = F.cross_entropy(model(pixels), labels)
    if model.training:
        loss.backward()
        model.zero_grad(set_to_none=True)


class Products:
    """Matrix products alone, as a function; every weight is a tensor of its own, outputs are allocated once."""

    def __init__(self, dtype: torch.dtype, device: str, has_backward: bool):
        self.dtype, self.device, self.has_backward = dtype, device, has_backward
        self.calls, self.tensors = [], {}

    def tensor(self, role, *shape: int) -> torch.Tensor:
        if (role, shape) not in self.tensors:
            self.tensors[role, shape] = torch.randn(shape, dtype=self.dtype, device=self.device)
        return self.tensors[role, shape]

    def add(self, role, x_shape, w_shape, has_dgrad: bool = True) -> None:
        """y = x w^T, as Linear has it, or batched (scores, weighted sums); backward the gradients of w and, if so, x."""
        x, w, y = (
            self.tensor(*args) for args in (("x", *x_shape), (role, *w_shape), ("y", *x_shape[:-1], w_shape[-2]))
        )
        multiply = torch.mm if x.ndim == 2 else torch.bmm
        self.calls.append(partial(multiply, x, w.mT, out=self.tensor("out", *y.shape)))
        if self.has_backward:
            self.calls.append(partial(multiply, y.mT, x, out=self.tensor(("gradient", role), *w_shape)))
        if self.has_backward and has_dgrad:
            self.calls.append(partial(multiply, y, w, out=self.tensor("out", *x_shape)))

    def add_layer(self, role, config, batch: int, tokens: int, num_outputs: int | None = None) -> None:
        """One layer of an encoder; with `num_outputs`, what that many of its outputs need."""
        width, hidden, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        rows, queries = batch * tokens, tokens if num_outputs is None else num_outputs
        self.add(role, (rows, width), (3 * width, width))
        for inputs, outputs in ((width, width), (width, hidden), (hidden, width)):
            self.add(role, (batch * queries, inputs), (outputs, inputs))
        self.add("key", (batch * heads, queries, width // heads), (batch * heads, tokens, width // heads))
        self.add("value", (batch * heads, queries, tokens), (batch * heads, width // heads, tokens))

    def __call__(self) -> None:
        for call in self.calls:
            call()


def make_products(model: torch.nn.Module, pixels: torch.Tensor, dtype: torch.dtype) -> Products:
    """The products of our ViT (but the head's)."""
    config, batch = model.config, len(pixels)
    patches, patch_values = (config.image_size // config.patch_size) ** 2, config.num_channels * config.patch_size**2
    products = Products(dtype, pixels.device, has_backward=model.training)
    # Pixels need no gradient.
    products.add("patches", (batch * patches, patch_values), (config.hidden_size, patch_values), has_dgrad=False)
    for layer in range(config.num_hidden_layers):
        products.add_layer(layer, config, batch, patches + 1)
    return products


def measure(steps: dict, rounds: int, device: str, progress: tqdm) -> dict[str, list[float]]:
    """Seconds of every step in every round; the order turns and is reversed each round, the first round warms up."""
    names, seconds = list(steps), {name: [] for name in steps}
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    for i in range(rounds + 1):
        for name in (names[i % len(names) :] + names[: i % len(names)])[:: (-1) ** i]:
            synchronize()
            start = time.perf_counter()
            steps[name]()
            synchronize()
            if i > 0:
                seconds[name].append(time.perf_counter() - start)
            progress.update()
    return seconds


def summarize(seconds: dict[str, list[float]], peers: tuple[str, ...] = PEERS) -> dict:
    """Medians and quartiles of the times, and of the ratios ours / peer and products / model within each round."""

    def spread(top, bottom=None):
        values = [a / b for a, b in zip(seconds[top], seconds[bottom], strict=True)] if bottom else seconds[top]
        return dict(zip(("low", "median", "high"), statistics.quantiles(values, method="inclusive"), strict=True))

    return {
        "seconds": {name: {**spread(name), "all": values} for name, values in seconds.items()},
        "ratio": {name: spread("hf_vitfm", name) for name in peers},
        "gemm_share": {name: spread("gemm", name) for name in ("hf_vitfm", *peers)},
    }


def describe(args: argparse.Namespace, modules: tuple = (hf_vitfm, torch, transformers, timm)) -> dict:
    """What runs where."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = (re.findall(r"model name\s*: (.*)", cpuinfo) or [platform.machine()])[0]
    hardware = torch.cuda.get_device_name() if args.device == "cuda" else f"{cpu}, {args.threads} threads"
    versions = {module.__name__: module.__version__ for module in modules}
    settings = {name: getattr(args, name) for name in ("device", "variant", "batch", "rounds", "threads")}
    return {"date": date.today().isoformat(), "hardware": hardware, "versions": versions, **settings, "cases": []}


def render(report: dict) -> str:
    """The report as a Markdown table."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    header = ["precision", "step", "ours, ms", *(f"{name}, ms" for name in PEERS)]
    header += [*(f"ours / {name}" for name in PEERS), "GEMM share"]
    rows = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    for case in report["cases"]:
        times = [f"{1000 * case['seconds'][name]['median']:.1f}" for name in ("hf_vitfm", *PEERS)]
        spreads = (*case["ratio"].values(), case["gemm_share"]["hf_vitfm"])
        cells = [f"{value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})" for value in spreads]
        rows.append([case["precision"], case["step"], *times, *cells])
    title = f"ViT-{report['variant']}, batch {report['batch']}, {report['rounds']} rounds; {report['hardware']}"
    return f"{title}; {versions}; {report['date']}.\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--variant", default="B/16", help="one that timm has too: Ti/16, S/16, B/16, L/16, B/32, ...")
    for name, default in {"batch": 8, "rounds": 7, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/vit_speed_<device>.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    models = {name: model.to(args.device) for name, model in build_models(args.variant).items()}
    pixels = torch.randn(args.batch, 3, 224, 224, device=args.device)
    labels = torch.randint(1000, (args.batch,), device=args.device)
    check_equal(models, pixels)
    report = describe(args)
    progress = tqdm(total=2 * len(PRECISIONS) * (args.rounds + 1) * (len(models) + 1), unit="step")
    for precision in PRECISIONS:
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        if precision == "bfloat16 weights":
            models, pixels = {name: model.to(dtype) for name, model in models.items()}, pixels.to(dtype)
        autocast = torch.autocast(args.device, torch.bfloat16, enabled=precision == "bfloat16 autocast")
        for mode in ("inference", "training"):
            progress.set_description(f"{precision}, {mode}")
            for model in models.values():
                model.train(mode == "training")
            steps = {name: partial(run_step, model, autocast, pixels, labels) for name, model in models.items()}
            steps["gemm"] = make_products(models["hf_vitfm"], pixels, dtype)
            seconds = measure(steps, args.rounds, args.device, progress)
            report["cases"].append({"precision": precision, "step": mode, **summarize(seconds)})
    progress.close()
    output = args.output or Path(__file__).parent / "results" / f"vit_speed_{args.device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(render(report))


if __name__ == "__main__":
    main()
