"""What a card says of checking its numbers: the command, and what the run recorded for it."""

from .markdown import as_code, as_table, as_text


_UNKNOWN = "unknown"
_SPLITS = {
    "train": "Training rows",
    "evaluation": "Evaluation rows",
    "labelled_bank": "Labelled rows to find neighbours among",
    "labelled_queries": "Labelled rows that are classified",
    "zero_shot": "Rows of the zero-shot classification",
}
_FAR = 2.0  # times the loss of the training: where that of the evaluation says that the images were learnt by heart


def checks_section(repo_id: str | None, run: dict) -> str:
    """The command that measures a model again, and the hashes it compares; what is not known is said to be unknown."""
    seeds, splits, weights = (run.get(name) or {} for name in ("seeds", "splits", "weights"))
    predictions = (run.get("evaluation") or {}).get("predictions") or {}
    rows = [
        ("Seed", _told(seeds.get("seed"))),
        ("Processes", _told(run.get("world_size"))),
        *((f"Weights, {as_text(name)}", as_code(digest)) for name, digest in weights.items()),
        *((_SPLITS.get(name, as_text(name)), _split(split)) for name, split in splits.items()),
        ("Predictions", as_code(predictions["sha256"]) if "sha256" in predictions else _UNKNOWN),
    ]
    rows += [] if weights else [("Weights", _UNKNOWN)]
    rows += [(_SPLITS[name], _UNKNOWN) for name in ("train", "evaluation") if not splits]
    if run.get("evaluation"):
        text = (
            "This evaluates the model anew and compares weights, evaluation data and numbers with `run.json`; what stands "
            "there as SHA-256:"
        )
    else:
        text = "This run did not record all that the command needs, so it will say what it cannot check:"
    command = f"```bash\nhf-vitfm verify {repo_id or 'path/to/this/folder'}\n```"
    return "\n\n".join(["## Check these numbers", command, text, as_table(("", ""), rows)])


def _told(value: object) -> str:
    return _UNKNOWN if value is None else as_text(value)


def _split(split: dict) -> str:
    if split.get("sha256") is None:
        return f"{split['rows']:,}, {_UNKNOWN}" + (f": {as_text(split['reason'])}" if split.get("reason") else "")
    return f"{split['rows']:,}, {as_code(split['sha256'])}"


def rounded_weights(run: dict) -> str:
    """A sentence on a file in half precision."""
    measured = "of the rounded ones" if run.get("evaluation") else "of those before"
    return f"Its weights were rounded to half precision for the file; the numbers are {measured}."


def overfitting(results: dict, run: dict) -> str | None:
    """A sentence on a training loss far below that of the evaluation; None where the files tell of none."""
    trace = run.get("loss_trace")
    if not trace or run.get("target_scale"):  # these two losses have two units
        return None
    trained, evaluated = trace[-1][1], results["eval_loss"]
    if not 0 < _FAR * trained < evaluated:
        return None
    return (
        f"In the end the loss of the training was {trained:.4g}, that of the evaluation {evaluated:.4g}: it knows its "
        "training images far better than others."
    )
