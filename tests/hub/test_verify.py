"""`verify`: what it confirms, what it catches, what it cannot tell, and that no code of a repository runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_vitfm import (
    MAEForPreTraining,
    export_checkpoint,
    load_image_processor,
    load_sample,
    sample_checkpoint,
)
from hf_vitfm.data.samples import EMBEDDED
from hf_vitfm.hub.verify import CANNOT, DIFFERS, MATCHES, Verification, tolerance, verify
from hf_vitfm.training.record import TRACE_POINTS, as_json, hash_weights, trace_loss


@pytest.fixture
def published(tmp_path) -> Path:
    """The classifier that ships, with its card, as somebody publishes it."""
    folder = tmp_path / "model"
    shutil.copytree(sample_checkpoint("fashion-vit"), folder)
    shutil.copytree(Path("model_cards/fashion-vit"), folder, dirs_exist_ok=True)
    return folder


def change_json(path: Path, **fields) -> None:
    content = json.loads(path.read_text())
    content |= fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def change_weight(folder: Path, name: str, change) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def text(result: Verification) -> str:
    return "\n".join(result.differences)


# What differs


def test_one_changed_number_among_the_weights_is_caught(published):
    def change(weight):
        weight[0] += 2**-10
        return weight

    change_weight(published, "classifier.bias", change)
    result = verify(published)
    assert result.verdict == DIFFERS
    assert result.differences == ["weights: model.safetensors is not the file that was recorded"]
    assert all(check.holds for check in result.metrics)  # the hash sees what the numbers do not


def test_other_weights_are_caught_by_the_numbers_even_if_their_hash_was_put_right(published):
    change_weight(published, "classifier.weight", lambda weight: weight.flip(0))
    change_json(published / "run.json", weights=hash_weights(published))
    result = verify(published)
    assert result.verdict == DIFFERS
    assert "eval_top1: 0.909 recorded" in text(result) and "allowed" in text(result) and "weights" not in text(result)
    assert any("not the same for every row" in note for note in result.notes)


def test_other_weights_of_a_clip_are_caught_by_hash_and_numbers(tmp_path):
    folder = shutil.copytree(sample_checkpoint("emoji-clip"), tmp_path / "model")
    change_weight(folder, "text_projection.weight", lambda weight: weight.flip(0))
    result = verify(folder)
    assert "weights: model.safetensors is not the file that was recorded" in result.differences
    assert "eval_zero_shot_top1" in text(result) and "eval_text_to_image_recall@10" in text(result)


def test_a_changed_test_set_is_named_as_such(published, tmp_path):
    rows = load_sample("fashion-mnist")["test"]
    relabelled = rows.map(
        lambda row, place: {"label": 9 - row["label"] if place < 50 else row["label"]}, with_indices=True
    )
    relabelled.to_parquet(tmp_path / "test.parquet")
    result = verify(published, tmp_path / "test.parquet")
    assert result.verdict == DIFFERS
    assert "the evaluation rows are not those that were recorded (1,000 rows here, 1000 then)" in text(result)
    assert "eval_top1" in text(result)


def test_the_same_data_from_another_place_is_the_same(published, tmp_path):
    shutil.copyfile(EMBEDDED / "fashion_mnist_test.parquet", tmp_path / "test.parquet")
    result = verify(published, tmp_path / "test.parquet")
    assert result.verdict == MATCHES, result


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("README.md", "| 90.9 % |", "| 93.9 % |", "README.md, table: Results / Top-1 accuracy is 93.9 %"),
        ("README.md", "value: 0.909", "value: 0.939", "README.md, metadata: image-classification / Fashion-MNIST"),
        ("README.md", "| Shirt | 74.0 % |", "| Shirt | 84.0 % |", "README.md, table: Results / Shirt is 84.0 %"),
        ("README.md", "| Training images | 4,000 |", "| Training images | 400 |", "Training images is 400"),
        ("all_results.json", '"eval_top5": 0.998', '"eval_top5": 0.999', "all_results.json: eval_top5 is 0.999; run.json"),
    ],
)  # fmt: skip
def test_an_edited_number_is_caught(published, file, old, new, message):
    before = (published / file).read_text()
    assert old in before
    (published / file).write_text(before.replace(old, new, 1))
    change_json(published / "run.json", sources={})  # these need no evaluation
    result = verify(published)
    assert result.verdict == DIFFERS and message in text(result)


@pytest.mark.parametrize("field", ["eval_top1", "Shirt"])
def test_a_number_edited_everywhere_is_caught_by_measuring(published, field):
    run = json.loads((published / "run.json").read_text())
    if field == "Shirt":
        run["per_class"]["Shirt"] = 0.94
    else:
        run["evaluation"]["metrics"][field] = 0.939
        change_json(published / "all_results.json", **{field: 0.939})
    (published / "run.json").write_text(json.dumps(run))
    (published / "README.md").unlink()
    (difference,) = verify(published).differences
    assert field in difference and "0.94 recorded, 0.74 found" in difference or "0.939 recorded, 0.909" in difference


# What cannot be told


def test_an_old_record_cannot_be_checked_and_says_why(published):
    fields = dict.fromkeys(["evaluation", "weights", "splits", "sources", "seeds", "loss_trace", "world_size"], ...)
    change_json(published / "run.json", **fields)
    (published / "README.md").unlink()
    result = verify(published)
    assert result.verdict == CANNOT
    assert (
        "run.json has no `weights`, `evaluation`, `splits`, `sources`, `seeds`; it is of an older"
        in result.unchecked[0]
    )
    (published / "run.json").unlink()
    result = verify(published)
    assert result.verdict == CANNOT and "without a run.json" in result.unchecked[-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": {"evaluation": {"dataset": "a local path"}}}, "Give it: --data PATH"),
        ({"sources": {"evaluation": {"dataset": str(EMBEDDED)}}}, "names no public data set"),
        ({"sources": {"evaluation": {"dataset": "fashion-mnist", "eval_split": "val"}}}, "no split 'val'"),
        ({"sources": {"evaluation": {"dataset": "fashion-mnist", "code": "x"}}}, "unexpected keyword argument 'code'"),
        ({"sources": {"evaluation": {"dataset": "fashion-mnist", "class_names": ["x"]}}}, "two names or more"),
        ({"sources": {}}, "no 'evaluation'"),
        ({"task": "image-to-image"}, "no evaluation for the task"),
        ({"task": ["image-classification"]}, "no evaluation for the task"),
        ({"hyperparameters": None}, "evaluation: "),
        (
            {"seeds": {"seed": "x"}, "sources": {"evaluation": {"dataset": "fashion-mnist", "holdout": 0.5}}},
            "evaluation: ",
        ),
        ({"task": "masked-image-modeling", "sources": {"labelled": {"dataset": "fashion-mnist"}}}, "cannot read"),
    ],
)
def test_what_a_record_does_not_tell_is_said(published, fields, message):
    change_json(published / "run.json", **fields)
    (published / "README.md").unlink()
    result = verify(published)
    assert result.verdict == CANNOT and message in result.unchecked[-1], result


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"evaluation": {"metrics": 1}}', '{"weights": 3}'])
def test_a_broken_record_is_no_crash(published, content):
    (published / "run.json").write_text(content)
    assert verify(published).verdict == CANNOT


def test_code_of_a_repository_does_not_run(published, tmp_path):
    mark = tmp_path / "ran"
    (published / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    auto_map = {"AutoConfig": "modeling_evil.Config", "AutoModelForImageClassification": "modeling_evil.Model"}
    change_json(published / "config.json", auto_map=auto_map)
    assert verify(published).verdict == MATCHES
    change_json(published / "config.json", model_type="evil")
    result = verify(published)
    assert result.verdict == CANNOT and "code that comes with a model is not run" in result.unchecked[0]
    assert not mark.exists()


def test_weights_that_are_a_pickle_are_not_read(published):
    (published / "model.safetensors").unlink()
    torch.save({}, published / "pytorch_model.bin")
    result = verify(published)
    assert "weights: model.safetensors was recorded and is not here" in result.differences
    assert "evaluation: " in result.unchecked[0]


def test_a_repository_on_the_hub(hub, client):
    folder = sample_checkpoint("fashion-vit")
    hub.publish("ada/fashion-vit", folder)
    hub.publish("ada/fashion-vit", {"timm/config.json": b"{", "timm/model.safetensors": b"other weights"})
    result = client.run(verify, "ada/fashion-vit")
    assert result.verdict == MATCHES and result.source == "ada/fashion-vit"
    assert "'ada/missing' cannot be read from the Hub" in str(client.failure(verify, "ada/missing"))


def test_another_format_at_the_root_is_confirmed_by_what_it_computes(tmp_path):
    shutil.copytree(Path("model_cards/fashion-mae"), tmp_path / "model")
    source = sample_checkpoint("fashion-mae")
    model, processor = MAEForPreTraining.from_pretrained(source), load_image_processor(source)
    export_checkpoint(model, tmp_path / "model", "transformers", processing_class=processor)
    result = verify(tmp_path / "model")
    assert result.verdict == MATCHES, result
    assert any("weights: in another format" in note for note in result.notes)

    change_weight(tmp_path / "model", "decoder.decoder_pred.weight", lambda weight: -weight)
    assert "eval_loss" in text(verify(tmp_path / "model"))


def test_a_file_of_weights_that_is_cut_is_no_crash(published):
    data = (published / "model.safetensors").read_bytes()
    (published / "model.safetensors").write_bytes(data[: len(data) // 2])
    result = verify(published)
    assert result.verdict == DIFFERS and "evaluation: " in result.unchecked[0]


def test_a_path_that_is_nothing_is_an_error():
    with pytest.raises(FileNotFoundError, match="no/such/folder"):
        verify("./no/such/folder")


# How near is near enough


def test_tolerances():
    assert 0.001 < tolerance("eval_top1", 0.9, 1000) < 0.0011  # one image
    assert 0.1 < tolerance("eval_top1", 0.9, 10) < 0.11
    assert 0.001 < tolerance("eval_top1", 0.9, 50_000) < 0.0011
    assert 0.005 < tolerance("eval_top1", 0.9, 1000, "bf16") < 0.0051
    assert tolerance("eval_loss", 2.0, 1000) == pytest.approx(0.002)
    assert tolerance("eval_loss", 2.0, 1000, "fp16") == pytest.approx(0.02)
    assert tolerance("eval_image_to_text_median_rank", 20.0, 1000) == 1


def test_trace_is_short_and_has_both_ends():
    log = [{"step": step, "loss": 1 / step} for step in range(1, 502)] + [{"step": 501, "eval_loss": 1.0}]
    trace = trace_loss(log)
    assert len(trace) == TRACE_POINTS and trace[0] == [1, 1.0] and trace[-1] == [501, 0.00199601]
    assert trace_loss(log[:3]) == [[1, 1.0], [2, 0.5], [3, 0.333333]]


def test_results_files_read_back():
    record = {"a": [1, [2, 3.5], {}], "b": {"c": ["x\n  ]", "{}", "[\n"], "d": []}, "trace": [[1, 2.0], [3, 4.0]]}
    assert json.loads(as_json(record)) == record
    assert "[1, 2.0]" in as_json(record)
