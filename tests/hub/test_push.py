"""A push is one commit of all that belongs to a model and nothing else, whatever the Hub and others do meanwhile."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from huggingface_hub import HfApi
from torch import Tensor

import hf_vitfm
from hf_vitfm import CLIPModel, MAEForPreTraining, ViTForImageClassification, push_to_hub, sample_checkpoint
from hf_vitfm.cards.model_card import MARKER
from hf_vitfm.cli.main import main
from tests.hub.client import at_once
from tests.hub.faults import Fault
from tests.hub.server import token_of
from tests.repo.tree import ROOT
from tests.tiny import random_images, randomize, tiny_config
from tests.training.runs import make_images


ADA, BOB = token_of("ada"), token_of("bob")
RUNS = {"emoji-clip": CLIPModel, "fashion-mae": MAEForPreTraining, "fashion-vit": ViTForImageClassification}
LEFT_BEHIND = ("checkpoint-3/optimizer.pt", "checkpoint-3/model.safetensors", "training_args.bin", "optimizer.pt")
LEFT_BEHIND += ("rng_state.pth", "trainer_state.json", "runs/events.out", "notes.txt", "own/more.json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the folders of finished runs, with what else a run leaves there."""
    top = tmp_path_factory.mktemp("runs")
    for run in RUNS:
        shutil.copytree(sample_checkpoint(run), top / run)
        shutil.copytree(ROOT / "model_cards" / run, top / run, dirs_exist_ok=True)
        for name in LEFT_BEHIND:
            (top / run / name).parent.mkdir(exist_ok=True)
            (top / run / name).write_text("{}")
    return top


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The folder of a saved classifier, which transformers' format can hold."""
    folder = tmp_path_factory.mktemp("models") / "vit"
    randomize(ViTForImageClassification(tiny_config(layer_norm_eps=1e-6))).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def push(source, repo_id: str, **options) -> str:
    return push_to_hub(source, repo_id, **{"token": ADA, **options}).oid


def contents(repository, branch: str = "main") -> dict[str, bytes]:
    files = repository.branches[branch].files.items()
    return {path: file.content for path, file in files if path != ".gitattributes"}


# What is published


@torch.no_grad()
def outputs(source, class_name: str, **where) -> Tensor:
    model, images = getattr(hf_vitfm, class_name).from_pretrained(source, **where).eval(), random_images()
    if class_name == "CLIPModel":
        return model.get_image_features(images).pooler_output
    size, patch = model.config.image_size, model.config.patch_size
    images = random_images(height=size, width=size)[:, : model.config.num_channels]
    more = {}
    if class_name == "MAEForPreTraining":
        more["noise"] = torch.arange(2.0 * (size // patch) ** 2).reshape(2, -1).sin()
    return model(images, **more).logits


def push_and_load(folder: Path, repo_id: str, class_name: str) -> bool:
    push(folder, repo_id)
    return torch.equal(outputs(repo_id, class_name, token=ADA), outputs(folder, class_name))


@pytest.mark.parametrize("name", RUNS)
def test_run_is_published_whole_in_one_commit(hub, client, runs, name):
    repo_id, run = f"ada/run-{name}", runs / name
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert client.run(push_and_load, run, repo_id, RUNS[run.name].__name__)
    repository = hub.repository(repo_id)
    names = {path.relative_to(run).as_posix() for path in before} - set(LEFT_BEHIND)
    assert len(repository.commits) == 2 and repository.private  # the Hub makes the first
    assert set(contents(repository)) == names
    for path in names - {"README.md"}:
        assert contents(repository)[path] == (run / path).read_bytes(), path
    card = contents(repository)["README.md"].decode()
    assert MARKER in card and f'"{repo_id}"' in card and "## Results" in card
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_second_push_of_the_same_sends_nothing(hub, client, runs):
    repo_id, run = "ada/again", runs / "fashion-mae"
    first = client.run(push, run, repo_id)
    hub.requests.clear()
    assert client.run(push, run, repo_id) == first
    assert not [request for request in hub.requests if "PUT" in request or "/commit/" in request]


def run_snippets(folder: Path, repo_id: str) -> list[Tensor]:
    """Push three formats, and run what the card says of each."""
    push(folder, repo_id, formats=("transformers", "hf_vitfm", "timm"), private=False)
    card = Path(HfApi(token=False).hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8")
    found = []
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        names = {}
        exec(code.replace("picture.jpg", str(folder.parent / "picture.png")), names)
        model = names["classifier"].model if "print(classifier(" in code else names.get("model")
        if hasattr(model, "eval"):
            result = model.eval()(random_images())
            found.append(getattr(result, "logits", result).detach())
    return found


def test_formats_lie_in_folders_with_code_that_runs(hub, client, vit):
    expected = outputs(vit, "ViTForImageClassification").detach()
    make_images(1)[0]["image"].save(vit.parent / "picture.png")
    found = client.run(run_snippets, vit, "ada/formats")
    assert len(found) == 3
    for logits in found:
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    published = contents(hub.repository("ada/formats"))
    assert json.loads(published["config.json"])["model_type"] == "vit"
    assert json.loads(published["hf_vitfm/config.json"])["model_type"] == "vitfm_vit"
    assert "import hf_vitfm\n" not in published["README.md"].decode()
    # Fewer formats: what was published of the others is an old model.
    hub.publish("ada/formats", {"mine/notes.txt": b"1", "LICENSE": b"2", "modeling_vit.py": b"3"})
    client.run(push, vit, "ada/formats")
    own = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(contents(hub.repository("ada/formats"))) == own | {"mine/notes.txt", "LICENSE"}


def push_model(folder: Path) -> list:
    model = ViTForImageClassification.from_pretrained(folder)
    push_to_hub(folder, "ada/model", token=ADA)
    same = model.push_to_hub("ada/model", token=ADA, commit_message="The same")
    with torch.no_grad():
        model.classifier.bias += 1
    processor = transformers.ViTImageProcessor.from_pretrained(folder)
    other = push_to_hub(model, "model", processor, token=ADA, private=False, commit_message="Another")
    branch = model.push_to_hub("ada/model", processing_class=processor, token=ADA, revision="feat/x")
    return [commit.oid for commit in (same, other, branch)]


def test_model_is_published_as_its_folder_is(hub, client, vit):
    same, other, branch = client.run(push_model, vit)
    repository = hub.repository("ada/model")
    first, second = repository.find(other).parent, repository.find(other)
    assert repository.private  # it was made so, and stays
    assert same == first.sha and second.title == "Another" and first.title == "Upload model"
    changed = {name for name in second.files if second.files[name] != first.files[name]}
    assert changed == {"model.safetensors"}  # the same card and preprocessing
    assert repository.branches["feat/x"].sha == branch and repository.branches["main"] is second


def test_code_goes_along_if_asked(hub, client, vit):
    client.run(push, vit, "ada/code", remote_code=True)
    published = contents(hub.repository("ada/code"))
    assert "modeling_vit.py" in published and "trust_remote_code=True" in published["README.md"].decode()
    client.run(push, vit, "ada/code")
    assert not [name for name in contents(hub.repository("ada/code")) if name.endswith(".py")]


# Who may


def push_twice(folder: Path) -> None:
    push(folder, "ada/open", private=True)


def test_visibility_of_a_repository_that_exists_stays(hub, client, vit):
    hub.contents.create("ada/open")
    client.run(push_twice, vit)
    assert not hub.repository("ada/open").private
    assert "ada/open is public, and stays so" in Path(client.log).read_text()


@pytest.mark.parametrize(
    ("token", "repo_id", "words"),
    [
        (BOB, "ada/closed", "403.*right to write"),
        (False, "ada/closed", "(401|Token).*hf auth login"),
        (f"{ADA[:-1]}!", "ada/closed", "401.*hf auth login"),
        (False, "closed", "Whose 'closed' is, is not known.*hf auth login"),
        (ADA, "bob/new", "403.*right to write"),
    ],
    ids=["another's", "none", "wrong", "no owner", "another's name"],
)
def test_who_may_not_write_is_told_what_to_do(hub, client, vit, token, repo_id, words):
    hub.contents.create("ada/closed")
    error = client.failure(at_once, push, vit, repo_id, token=token)
    assert error.kind == "PushError" and re.search(words, error.text), error.text
    assert (
        hub.repository("ada/closed").files.keys() == {".gitattributes"} and "bob/new" not in hub.contents.repositories
    )


def test_tag_is_no_place_to_write_to(hub, client, vit):
    repository = hub.contents.create("ada/tagged")
    repository.tags["v1"] = repository.branches["main"]
    assert "`revision` must be a branch" in client.failure(push, vit, "ada/tagged", revision="v1").text


# What goes wrong


@dataclass
class Meanwhile(Fault):
    """Somebody else commits when a request comes; no fault of the server's."""

    action: object = None

    def is_due(self, request: str) -> bool:
        if super().is_due(request):
            self.action(self.seen)
        return False


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST .*/commit/", 500),
        Fault("POST .*/commit/", 409, times=2),
        Fault("POST .*/commit/", 412),
        Fault("POST .*/commit/", 429, headers={"Retry-After": "1"}),
        Fault("POST .*/commit/"),
        Fault("POST .*/commit/", moment="after"),
        Fault("POST .*/preupload/", 500, times=2),
        Fault("PUT /large/", 500),
        Fault("PUT /large/", times=6),  # the client by itself tries six times
        Fault("PUT /large/", 409),
        Fault("POST /large/verify", 412),
        Fault("POST .*/repos/create", 500),
        Fault("GET /api/models/", moment="during"),
    ],
    ids="500 409 412 429 dropped lost preupload large dropped-large large-409 verify create read".split(),
)
def test_passing_failure_is_tried_again(hub, client, vit, request, fault):
    repo_id = f"ada/passing-{request.node.callspec.id}"
    model = vit.with_name(f"own-{request.node.callspec.id}")  # whose weights are not there yet
    shutil.copytree(vit, model)
    bias_of(model, request.node.callspec.id)
    hub.faults.append(fault)
    commit = client.run(at_once, push, model, repo_id)
    repository = hub.repository(repo_id)
    assert repository.branches["main"].sha == commit and len(repository.commits) == 2
    assert contents(repository)["model.safetensors"] == (model / "model.safetensors").read_bytes()
    sent = [text for text in hub.requests if text.startswith("PUT /large/")]
    assert len(sent) == (1 + fault.times if fault.pattern.startswith("PUT") else 1)
    assert fault.seen == 1 if fault.moment == "after" or "verify" in fault.pattern else fault.seen > 1  # nothing twice


def bias_of(folder: Path, name: str) -> None:
    model = ViTForImageClassification.from_pretrained(folder)
    torch.nn.init.constant_(model.classifier.bias, sum(map(ord, name)))
    model.save_pretrained(folder)


MOMENTS = {
    "read": "GET /api/models/",
    "create": "POST /api/repos/create",
    "preupload": "POST .*/preupload/",
    "batch": "POST .*/objects/batch",
    "large": "PUT /large/",
    "commit": "POST .*/commit/",
}


# The answer 409 to `create` says that the repository is there.
LASTING = [(moment, status) for moment in MOMENTS for status in (None, 409, 412, 429, 500)]
LASTING.remove(("create", 409))


@pytest.mark.parametrize("moment, status", LASTING)
def test_lasting_failure_leaves_all_as_it_was_and_what_arrived_is_not_sent_again(hub, client, vit, moment, status):
    repo_id, newer = f"ada/{moment}-{status}", shutil.copytree(vit, vit.with_name(f"{moment}-{status}"))
    bias_of(newer, repo_id)
    before = None
    if moment != "create":
        hub.publish(repo_id, {"config.json": b"{}", "model.safetensors": b"old"})
        before = hub.repository(repo_id).branches["main"]
    hub.faults.append(Fault(MOMENTS[moment], status, times=1000))
    error = client.failure(at_once, push, newer, repo_id)
    assert error.kind == "PushError" and f"Nothing was published in {repo_id}." in error.text
    assert re.search(str(status) if status else "isconnected", error.text), error.text
    assert before is None or hub.repository(repo_id).branches["main"] is before
    hub.faults.clear()
    hub.requests.clear()
    client.run(push, newer, repo_id)
    assert contents(hub.repository(repo_id))["model.safetensors"] == (newer / "model.safetensors").read_bytes()
    sent = [text for text in hub.requests if text.startswith("PUT /large/")]
    assert len(sent) == (0 if moment == "commit" else 1)


def test_upload_of_many_files_goes_on_where_it_was_interrupted(hub, client, vit, tmp_path):
    model = ViTForImageClassification.from_pretrained(vit)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    hub.faults.append(Fault("PUT /large/", first=3, times=1000))
    assert "Nothing was published" in client.failure(at_once, push, tmp_path, "ada/shards").text
    assert hub.repository("ada/shards").files.keys() == {".gitattributes"}
    arrived = [name for name in shards if (tmp_path / name).read_bytes() in hub.contents.large.values()]
    assert 0 < len(arrived) < len(shards)
    hub.faults.clear()
    hub.requests.clear()
    client.run(push, tmp_path, "ada/shards")
    assert set(shards) < hub.repository("ada/shards").files.keys()
    assert len([text for text in hub.requests if text.startswith("PUT")]) == len(shards) - len(arrived)


@pytest.mark.parametrize("times", [1, 100])
def test_commit_of_somebody_else_is_built_on_or_told(hub, client, vit, times):
    repo_id = f"ada/meanwhile-{times}"
    hub.contents.create(repo_id)

    def interfere(seen: int) -> None:
        hub.publish(repo_id, {"theirs.txt": str(seen).encode(), "config.json": b"{}"})

    hub.faults.append(Meanwhile("POST .*/commit/", times=times, action=interfere))
    repository = hub.repository(repo_id)
    if times == 1:
        client.run(at_once, push, vit, repo_id)
        assert repository.files["theirs.txt"] == b"1" and b"vitfm_vit" in repository.files["config.json"]
    else:
        error = client.failure(at_once, push, vit, repo_id)
        assert "Somebody else changes it at the same time" in error.text
        assert "model.safetensors" not in repository.files


# Secrets


def test_tokens_are_in_nothing_that_was_printed_or_published(hub, client, vit):
    """After all that the tests of this module did, the failures among them."""
    hub.faults.append(Fault("POST .*/commit/", 500, times=100))
    error = client.failure(at_once, push, vit, "ada/secret")
    hub.faults.clear()
    commits = [commit for repo in hub.contents.repositories.values() for commit in repo.commits.values()]
    published = [file for commit in commits for file in commit.files.values()]
    for secret in (ADA, BOB):
        assert secret not in error.message and secret not in error.text
        assert secret.encode() not in Path(client.log).read_bytes()
        assert not [file for file in published if secret.encode() in file.content]


def test_command_publishes(hub, client, vit):
    client.run(command, ["push", str(vit), "ada/command", "--message", "By hand", "--public"])
    repository = hub.repository("ada/command")
    assert repository.branches["main"].title == "By hand" and not repository.private
    assert f"{hub.endpoint}/ada/command/commit/" in Path(client.log).read_text()


def command(argv: list[str]) -> None:
    with mock.patch.dict(os.environ, {"HF_TOKEN": ADA}):
        if main(argv) != 0:
            raise RuntimeError("the command failed")
