"""Models load from the Hub in a process with an empty cache, and what hinders that is said with what helps."""

import huggingface_hub
import pytest
import torch
import transformers
from torch import Tensor

import hf_vitfm
from hf_vitfm import ViTForImageClassification, load_image_processor, load_tokenizer
from tests.hub.client import at_once
from tests.hub.faults import Fault
from tests.hub.server import token_of
from tests.tiny import FIELDS, random_images, randomize, tiny_clip, tiny_config


CLASSES = {"ours": "ViTForImageClassification", "our-clip": "CLIPModel", "transformers": "ViTForImageClassification"}
CLASSES |= {"timm": "ViTForImageClassification", "open-clip": "CLIPModel"}


@torch.no_grad()
def outputs(model) -> Tensor:
    images = random_images()
    return model.get_image_features(images).pooler_output if hasattr(model, "text_model") else model(images).logits


def load(repo_id: str, class_name: str = "ViTForImageClassification", **kwargs) -> Tensor:
    model = getattr(hf_vitfm, class_name).from_pretrained(repo_id, **kwargs).eval()
    assert model.name_or_path == repo_id
    return outputs(model)


@torch.no_grad()
def save_all(folder) -> dict[str, Tensor]:
    """One model of each kind, in a folder of its own, and what its own library computes."""
    from tests.conversion.test_open_clip import save_theirs
    from tests.conversion.timm_models import save_timm, timm_model

    models = {
        "ours": randomize(ViTForImageClassification(tiny_config())),
        "our-clip": tiny_clip(),
        "transformers": randomize(transformers.ViTForImageClassification(transformers.ViTConfig(**FIELDS))),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    timm = timm_model("augreg")
    save_timm(timm, folder / "timm")
    open_clip = save_theirs(folder / "open-clip")
    theirs = {"timm": timm(random_images()), "open-clip": open_clip.encode_image(random_images())}
    return {name: outputs(model) for name, model in models.items()} | theirs


@pytest.fixture(scope="module")
def published(running_hub, tmp_path_factory):
    """Outputs by the name of a repository of ada's; beside it closed ones, and name-old, which moved."""
    folder = tmp_path_factory.mktemp("models")
    expected = save_all(folder)
    for name in expected:
        running_hub.publish(f"ada/{name}", folder / name)
        for end in ("", "-unread"):  # what was fetched once stays readable, from the cache
            running_hub.publish(f"ada/{name}-private{end}", folder / name, private=True)
            running_hub.publish(f"ada/{name}-gated{end}", folder / name, gated=True)
        running_hub.publish(f"ada/{name}-old", folder / name)
        running_hub.contents.move(f"ada/{name}-old", f"ada/{name}-new")
    inside = {f"models/vit/{path.name}": path.read_bytes() for path in (folder / "transformers").iterdir()}
    running_hub.publish("ada/inside", inside)
    running_hub.publish("ada/nothing", {"notes.txt": b"none yet"})
    return expected


# What loads


@pytest.mark.parametrize("name", CLASSES)
def test_model_loads_and_computes_what_its_library_does(hub, client, published, name):
    for repo_id in (f"ada/{name}", f"ada/{name}-old"):
        torch.testing.assert_close(client.run(load, repo_id, CLASSES[name]), published[name], rtol=1e-5, atol=1e-5)
    assert not [text for text in hub.requests if text.startswith("GET") and ".safetensors" in text][2:]  # one each


@pytest.mark.parametrize("name", CLASSES)
def test_private_and_gated_models_load_with_a_token_that_may(hub, client, published, name):
    hub.repository(f"ada/{name}-gated").readers.add("bob")
    for kind, user in (("private", "ada"), ("gated", "bob")):
        found = client.run(load, f"ada/{name}-{kind}", CLASSES[name], token=token_of(user))
        torch.testing.assert_close(found, published[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_revision_is_a_branch_a_tag_or_a_commit(hub, client, published, tmp_path, name):
    repository = hub.repository(f"ada/{name}")
    first = repository.tags["v1.0"] = repository.branches["old/one"] = repository.branches["main"]
    hub.publish(repository.name, {"config.json": b"{}", "open_clip_config.json": b"{}"})  # main is not readable now
    for revision in ("v1.0", "old/one", first.sha):
        found = client.run(load, f"ada/{name}", CLASSES[name], revision=revision)
        torch.testing.assert_close(found, published[name], rtol=1e-5, atol=1e-5)
    repository.branches["main"] = first


def test_subfolder_is_read(hub, client, published):
    found = client.run(load, "ada/inside", subfolder="models/vit")
    torch.testing.assert_close(found, published["transformers"], rtol=1e-5, atol=1e-5)
    missing = client.failure(load, "ada/inside", subfolder="models/vat")
    assert "no weights, in its subfolder 'models/vat'" in missing.text


@pytest.mark.parametrize("name", ["ours", "timm"])
def test_what_was_fetched_loads_while_the_hub_fails_or_there_is_no_network(hub, client, published, name):
    client.run(load, f"ada/{name}")
    hub.faults.append(Fault("", 500, times=1000))
    torch.testing.assert_close(client.run(at_once, load, f"ada/{name}"), published[name], rtol=1e-5, atol=1e-5)
    cache = f"{client.environment['HF_HOME']}/hub"  # this process is offline
    torch.testing.assert_close(load(f"ada/{name}", cache_dir=cache), published[name], rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ValueError, match="not in the cache .* at revision 'v9'.*offline.*`hf download ada/.* --revision v9`"
    ):
        load(f"ada/{name}", cache_dir=cache, revision="v9")


# What does not


LOADERS = {"model": load, "image processor": load_image_processor, "tokenizer": load_tokenizer}
NOT_FOUND = (
    "is no folder here, and the Hub has no such repository, or a private one. Check the name; for a private one"
)


def refusals(repo_id: str, **kwargs) -> dict[str, str]:
    found = {}
    for name, loader in LOADERS.items():
        try:
            loader(repo_id, **kwargs)
            found[name] = "no error"
        except (OSError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


@pytest.mark.parametrize(
    "repo_id, user, kwargs, message",
    [
        ("ada/ours-private-unread", None, {}, NOT_FOUND),
        ("ada/timm-private-unread", "bob", {}, NOT_FOUND),
        ("ada/timm-private-unread", "mallory", {}, "the Hub does not accept the token"),
        ("ada/ours-gated-unread", None, {}, "it is gated. Ask for access on"),
        ("ada/timm-gated-unread", "mallory", {}, "the Hub does not accept the token"),
        ("ada/missing", "ada", {}, NOT_FOUND),
        ("missing", None, {}, NOT_FOUND),
        ("ada/ours", None, {"revision": "v9"}, "it has no revision 'v9'"),
        ("ada/transformers", "ada", {"revision": "v9"}, "it has no revision 'v9'"),
    ],
)
def test_what_is_closed_or_missing_is_said_by_every_loader(hub, client, published, repo_id, user, kwargs, message):
    token = {"token": token_of(user)} if user else {}
    found = client.run(refusals, repo_id, **kwargs, **token)
    expected = f"OSError: {repo_id!r} cannot be read: "
    assert {name: text.startswith(expected) and message in text for name, text in found.items()} == dict.fromkeys(
        LOADERS, True
    ), found


@torch.no_grad()
def through_transformers(repo_id: str, **where) -> list[Tensor]:
    """What the Auto class and a pipeline load."""
    model = transformers.AutoModelForImageClassification.from_pretrained(repo_id, **where)
    names = {name: where[name] for name in ("token", "revision") if name in where}
    pipe = transformers.pipeline("image-classification", model=repo_id, **names) if where == names else None
    return [outputs(each.eval()) for each in (model, pipe and pipe.model) if each is not None]


@pytest.mark.parametrize("name", ["ours", "transformers"])
def test_auto_classes_and_pipelines_read_what_they_may_and_say_what_they_may_not(hub, client, published, name):
    """Of this library's format and of transformers', by transformers' own loading."""
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}).to_json_string().encode()
    for repo_id in (f"ada/{name}", f"ada/{name}-private", f"ada/{name}-private-unread"):
        hub.publish(repo_id, {"preprocessor_config.json": processor})
    repository = hub.repository(f"ada/{name}")
    repository.tags["v2"] = repository.branches["next"] = first = repository.branches["main"]
    inside = {f"models/vit/{path}": data for path, data in repository.files.items() if path != ".gitattributes"}
    hub.publish(f"ada/{name}-inside", inside)
    found = [client.run(through_transformers, repository.name, revision=there) for there in ("v2", "next", first.sha)]
    found.append(client.run(through_transformers, f"ada/{name}-private", token=token_of("ada")))
    assert [len(each) for each in found] == [2] * 4
    found.append(client.run(through_transformers, f"ada/{name}-inside", subfolder="models/vit"))
    for logits in sum(found, []):
        torch.testing.assert_close(logits, published[name], rtol=1e-5, atol=1e-5)
    for repo_id, where in (
        (f"ada/{name}-private-unread", {}),
        (f"ada/{name}-private-unread", {"token": token_of("bob")}),
        ("ada/missing", {"token": token_of("ada")}),
        (repository.name, {"revision": "v9"}),
    ):
        error = client.failure(through_transformers, repo_id, **where)
        assert error.kind in ("OSError", "RepositoryNotFoundError") and repo_id in error.text, error.text
        assert "v9" in error.text or "private" in error.text, error.text


def test_repository_without_a_model_is_not_taken_for_one_out_of_reach(hub, client, published):
    found = client.run(refusals, "ada/nothing")
    assert "no config.json with a `model_type`, and no weights" in found["model"]
    assert "has no readable preprocessor_config.json" in found["image processor"]
    assert "has no tokenizer that can be read" in found["tokenizer"]


@pytest.mark.parametrize("status", [429, 500])
def test_hub_that_answers_with_errors_is_said_to(hub, client, published, status):
    hub.faults.append(Fault("/ada/elsewhere/", status, times=1000))
    found = client.run(at_once, refusals, "ada/elsewhere")
    for text in found.values():
        assert "not in the cache" in text and f"the Hub answered with an error ({status}); try again later" in text


def test_weights_that_the_hub_does_not_give_are_not_said_to_be_missing(hub, client, published):
    hub.publish("ada/half", hub.repository("ada/timm").files)
    hub.faults.append(Fault("HEAD .*model.safetensors", 500, times=1000))
    assert "the Hub answered with an error (500)" in client.failure(at_once, load, "ada/half").text
    hub.faults.clear()
    torch.testing.assert_close(client.run(load, "ada/half"), published["timm"], rtol=1e-5, atol=1e-5)


def test_connection_that_breaks_is_named_with_the_repository(hub, client, published):
    hub.faults.append(Fault("/ada/broken/", times=1000))
    for text in client.run(refusals, "ada/broken").values():
        assert "'ada/broken'" in text and "isconnected" in text


def say_everything() -> None:
    huggingface_hub.utils.logging.set_verbosity_debug()
    transformers.logging.set_verbosity_debug()


def test_nothing_that_was_said_holds_a_token(hub, client, published):
    token = token_of("mallory")
    client.run(say_everything)
    found = [client.run(refusals, repo_id, token=token) for repo_id in ("ada/ours-gated-unread", "ada/no")]
    found.append(client.failure(load, "ada/timm-gated-unread", token=token_of("bob") + "0").message)
    written = client.log.read_text()
    assert "Request" in written  # the log says much
    assert "hf_" not in f"{found}".replace("hf_vitfm", "").replace("hf_hub", "")
    for secret in (token, token_of("ada"), token_of("bob")):
        assert secret not in f"{found} {written}"
