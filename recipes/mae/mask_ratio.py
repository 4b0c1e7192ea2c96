"""The masking-ratio figure in small: pre-train at several ratios, then fine-tune and linear-probe each.

MAE (He et al. 2022), Fig. 5, with two models from scratch beside it (its section 4.1): one by the same fine-tuning, one by
a longer recipe of its own. The default takes under half an hour on two cores:

    python recipes/mae/mask_ratio.py recipes/mae/configs/mask_ratio.yaml

The configuration has a section for each stage, whose keys are those of pretrain.py, finetune.py and linear_probe.py;
every run of theirs gets a folder of its own. Killed at any moment, the same command goes on with the runs that are
missing. On several devices put `accelerate launch` in the place of `python`.
"""

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from accelerate import PartialState

import finetune  # the scripts beside this one
import linear_probe
import pretrain
from hf_vitfm.cards.markdown import as_percent, as_table
from hf_vitfm.cards.mask_ratio_figure import draw_mask_ratios
from hf_vitfm.cards.redact import redact, redact_command
from hf_vitfm.training.recipe import parse_recipe
from hf_vitfm.training.sweep import SweepRun, on_first_process, perform, say


SCRIPTS = {"pretrain": pretrain, "finetune": finetune, "linear_probe": linear_probe, "scratch": finetune}
SCRATCH = {"finetune": "the same fine-tuning", "scratch": "a longer recipe"}
SMOKE_RATIOS = 2


@dataclass
class MaskRatioArguments:
    """Which ratios are compared, and how each stage trains."""

    output_dir: str = field(metadata={"help": "folder of all runs, the table and the figure"})
    ratios: list[float] = field(metadata={"help": "masking ratios, each in (0, 1)"})
    encoder: dict = field(metadata={"help": "fields of the encoder's configuration, the same in all runs"})
    decoder: dict = field(default_factory=dict, metadata={"help": "fields of the decoder and of the masking"})
    common: dict = field(default_factory=dict, metadata={"help": "options of every stage: data, seed, ..."})
    pretrain: dict = field(default_factory=dict, metadata={"help": "options of pretrain.py"})
    finetune: dict = field(default_factory=dict, metadata={"help": "options of finetune.py"})
    linear_probe: dict = field(default_factory=dict, metadata={"help": "options of linear_probe.py"})
    scratch: dict = field(
        default_factory=dict, metadata={"help": "options of finetune.py, over those of `finetune`, without checkpoint"}
    )
    smoke: bool = field(default=False, metadata={"help": "two ratios, a few steps of a tiny model"})

    def __post_init__(self):
        if not self.ratios or not all(isinstance(ratio, int | float) and 0 < ratio < 1 for ratio in self.ratios):
            raise ValueError(f"`ratios` must be one or more shares in (0, 1), such as 0.15 0.75; got {self.ratios!r}.")
        if len(set(self.ratios)) < len(self.ratios):
            raise ValueError(f"`ratios` must differ among themselves; got {self.ratios!r}.")
        if self.smoke:
            self.ratios = self.ratios[:SMOKE_RATIOS]
            self.output_dir += "-smoke"

    def stage(self, name: str, model: dict) -> dict:
        """All options of a stage: its section over the common one."""
        own = {**self.finetune, **self.scratch} if name == "scratch" else getattr(self, name)
        return {**self.common, **own, "model": {**own.get("model", {}), **model}}


def make_run(args: MaskRatioArguments, name: str, stage: str, model: dict, start: SweepRun | None = None) -> SweepRun:
    """A run of a stage's script, with a configuration file of its own beside its folder; `start` is its pre-training."""
    settings = args.stage(stage, model)
    file = Path(args.output_dir) / f"{name}.yaml"
    on_first_process(lambda: write_settings(file, settings))
    options = [str(file), *(["--checkpoint", str(start.directory)] if start else []), *(["--smoke"] * args.smoke)]
    script = f"recipes/mae/{SCRIPTS[stage].__name__.rpartition('.')[2]}.py"
    depends_on = {**settings, "start": dict(start.settings)} if start else settings
    return SweepRun(Path(args.output_dir) / name, script, tuple(options), depends_on)


def write_settings(file: Path, settings: dict) -> None:
    """Write a configuration file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def compare(args: MaskRatioArguments) -> dict:
    """Do all runs; returns top-1 accuracies: by ratio for `finetune` and `linear_probe`, by recipe for `scratch`."""
    scores = {"finetune": {}, "linear_probe": {}, "scratch": {}}
    for number, ratio in enumerate(sorted(args.ratios), 1):
        title = f"[{number}/{len(args.ratios)}] ratio {ratio:g}"
        masked = {**args.encoder, **args.decoder, "mask_ratio": ratio}
        pretrained = make_run(args, f"pretrain-{ratio:g}", "pretrain", masked)
        perform(pretrained, pretrain.main, f"{title}, pre-training")
        for stage in ("finetune", "linear_probe"):
            run = make_run(args, f"{stage}-{ratio:g}", stage, {}, pretrained)
            scores[stage][ratio] = perform(run, SCRIPTS[stage].main, f"{title}, {stage}")["eval_top1"]
    for stage, name in SCRATCH.items():
        run = make_run(args, f"from-scratch-{stage}", stage, args.encoder)
        scores["scratch"][name] = perform(run, finetune.main, f"from scratch, {name}")["eval_top1"]
    return scores


def tabulate(scores: dict) -> str:
    """The accuracies as a table in Markdown."""
    rows = [
        (f"{100 * ratio:g} %", as_percent(scores["finetune"][ratio]), as_percent(scores["linear_probe"][ratio]))
        for ratio in scores["finetune"]
    ]
    rows += [(f"from scratch, {name}", as_percent(score), "") for name, score in scores["scratch"].items()]
    return as_table(("Masked", "Fine-tuned", "Linear probe"), rows)


def main(argv: list[str] | None = None) -> dict:
    """Run the comparison; returns what mask_ratio.json holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse_recipe((MaskRatioArguments,), argv, description=__doc__)
    scores = compare(args)
    record = {
        "recipe": "recipes/mae/mask_ratio.py",
        "config": argv[0],
        "command": redact_command(shlex.join(["python", "recipes/mae/mask_ratio.py", *argv])),
        "top1": {name: {str(key): score for key, score in values.items()} for name, values in scores.items()},
    }
    directory = Path(args.output_dir)
    if PartialState().is_main_process:
        (directory / "mask_ratio.json").write_text(json.dumps(redact(record), indent=2) + "\n", encoding="utf-8")
        (directory / "mask_ratio.md").write_text(tabulate(scores) + "\n", encoding="utf-8")
        draw_mask_ratios(scores["finetune"], scores["linear_probe"], scores["scratch"], directory / "mask_ratio.png")
    say(f"{tabulate(scores)}\n\ntable and figure: {directory / 'mask_ratio.md'}, mask_ratio.png, mask_ratio.json")
    return record


if __name__ == "__main__":
    main()
