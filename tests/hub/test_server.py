"""The local Hub answers the unmodified client as the Hub does, which makes it fit for tests."""

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from tests.hub.client import at_once
from tests.hub.faults import Fault
from tests.hub.server import token_of


ADA, BOB = token_of("ada"), token_of("bob")
CARD = b"---\nlicense: apache-2.0\ntags: [vision]\n---\n# A model\n"
FILES = {"config.json": b"{}", "README.md": CARD, "model.safetensors": b"weights" * 500, "vit/config.json": b"[]"}


def kind_of(function, *args, **kwargs) -> str:
    """The name of the class of a call's error, and the status of the answer."""
    try:
        function(*args, **kwargs)
    except HfHubHTTPError as error:
        return f"{type(error).__name__} {error.response.status_code}"
    except Exception as error:
        return type(error).__name__
    return "no error"


# Repositories


def create_and_look() -> dict:
    api = HfApi(token=ADA)
    api.create_repo("ada/new", private=True)
    api.create_repo("new", exist_ok=True)  # the same, named without its owner
    return {
        "names": [HfApi(token=token).whoami()["name"] for token in (ADA, BOB)],
        "bad token": kind_of(HfApi(token="hf_wrong").whoami),
        "again": kind_of(api.create_repo, "ada/new"),
        "for another": kind_of(api.create_repo, "bob/new"),
        "without a token": kind_of(HfApi(token=False).create_repo, "ada/newer"),
        "exists": [HfApi(token=token).repo_exists("ada/new") for token in (ADA, BOB, False)],
        "private": api.model_info("ada/new").private,
        "listed": [
            sorted(m.id for m in HfApi(token=t).list_models(author="ada") if m.id == "ada/new") for t in (ADA, BOB)
        ],
        "deleted": [api.delete_repo("ada/new"), api.repo_exists("ada/new")],
    }


def test_repositories_are_made_once_by_their_owner(hub, client):
    assert client.run(create_and_look) == {
        "names": ["ada", "bob"],
        "bad token": "HfHubHTTPError 401",
        "again": "HfHubHTTPError 409",
        "for another": "HfHubHTTPError 403",
        "without a token": "HfHubHTTPError 401",
        "exists": [True, False, False],
        "private": True,
        "listed": [["ada/new"], []],
        "deleted": [None, False],
    }


def read_closed() -> dict:
    def reads(repo_id):
        tokens = {"nobody": False, "bob": BOB, "ada": ADA}  # the owner last: then it is in the cache
        return {name: kind_of(HfApi(token=t).hf_hub_download, repo_id, "config.json") for name, t in tokens.items()}

    anonymous = HfApi(token=False)
    return {
        "private": reads("ada/private"),
        "gated": reads("ada/gated"),
        "gated is listed": anonymous.model_info("ada/gated").gated,
        "missing": [kind_of(HfApi(token=token).model_info, "ada/missing") for token in (ADA, False)],
        "without an owner": kind_of(anonymous.model_info, "missing"),
        "write": kind_of(HfApi(token=BOB).upload_file, path_or_fileobj=b"", path_in_repo="a", repo_id="ada/gated"),
    }


def test_private_and_gated_repositories_are_closed_to_others(hub, client):
    hub.publish("ada/private", FILES, private=True)
    hub.publish("ada/gated", FILES, gated=True)
    missing = {"bob": "RepositoryNotFoundError 404", "nobody": "RepositoryNotFoundError 401"}
    assert client.run(read_closed) == {
        "private": {"ada": "no error", **missing},
        "gated": {"ada": "no error", "bob": "GatedRepoError 403", "nobody": "GatedRepoError 401"},
        "gated is listed": "manual",
        "missing": ["RepositoryNotFoundError 404", "RepositoryNotFoundError 401"],
        "without an owner": "RepositoryNotFoundError 401",
        "write": "HfHubHTTPError 403",
    }


def move_and_read() -> dict:
    api = HfApi(token=ADA)
    api.move_repo("ada/old", "ada/renamed")
    old = api.upload_file(path_or_fileobj=b"by the old name", path_in_repo="note.txt", repo_id="ada/old")
    return {
        "id": api.model_info("ada/old").id,
        "files": api.list_repo_files("ada/old"),
        "content": open(hf_hub_download("ada/old", "note.txt", token=False)).read(),
        "same commit": old.oid == api.model_info("ada/renamed", revision="main").sha,
    }


def test_renamed_repository_is_found_by_its_old_name(hub, client):
    hub.publish("ada/old", {"config.json": b"{}"})
    found = client.run(move_and_read)
    names = [".gitattributes", "config.json", "note.txt"]
    assert found == {"id": "ada/renamed", "files": names, "content": "by the old name", "same commit": True}


# Files


def read_files(folder: str) -> dict:
    api = HfApi(token=False)
    info = api.model_info("ada/files", files_metadata=True)
    weights = next(sibling for sibling in info.siblings if sibling.rfilename == "model.safetensors")
    entries = list(api.list_repo_tree("ada/files", expand=True))
    inner = [entry.path for entry in api.list_repo_tree("ada/files", "vit")]
    for name in ("missing.json", "missing.json"):
        missing = kind_of(hf_hub_download, "ada/files", name)
    snapshot = snapshot_download("ada/files", allow_patterns=["*.json", "*.safetensors"], local_dir=folder)
    return {
        "card": [info.card_data.license, info.tags],
        "weights": [weights.size, weights.lfs.size, weights.lfs.sha256],
        "tree": sorted(entry.path for entry in entries),
        "last": {entry.last_commit.title for entry in entries},
        "inner": inner,
        "info": [(e.path, type(e).__name__) for e in api.get_paths_info("ada/files", ["config.json", "vit", "x"])],
        "exists": [api.file_exists("ada/files", name) for name in ("vit/config.json", "vit/model.safetensors")],
        "missing": missing,
        "no folder": kind_of(lambda: list(api.list_repo_tree("ada/files", "vat"))),
        "snapshot": snapshot == folder,
    }


def test_files_are_listed_described_and_fetched(hub, client, tmp_path):
    hub.publish("ada/files", FILES)
    weights = hub.repository("ada/files").branches["main"].files["model.safetensors"]
    assert weights.is_large
    assert client.run(read_files, str(tmp_path)) == {
        "card": ["apache-2.0", ["vision"]],
        "weights": [3500, 3500, weights.sha256],
        "tree": [".gitattributes", "README.md", "config.json", "model.safetensors", "vit"],
        "last": {"published"},
        "inner": ["vit/config.json"],
        "info": [("vit", "RepoFolder"), ("config.json", "RepoFile")],
        "exists": [True, False],
        "missing": "RemoteEntryNotFoundError 404",
        "no folder": "RemoteEntryNotFoundError 404",
        "snapshot": True,
    }
    fetched = {
        path: (tmp_path / path).read_bytes() for path in ("config.json", "model.safetensors", "vit/config.json")
    }
    assert fetched == {path: FILES[path] for path in fetched}
    assert not (tmp_path / "README.md").exists()


def write_files(folder: str) -> dict:
    api = HfApi(token=ADA)
    api.create_repo("ada/written")
    first = api.upload_folder(repo_id="ada/written", folder_path=folder, commit_message="all of it")
    unchanged = api.upload_folder(repo_id="ada/written", folder_path=folder)
    api.upload_file(path_or_fileobj=b"", path_in_repo="empty.bin", repo_id="ada/written")
    operations = [
        CommitOperationAdd("a.txt", b"text"),
        CommitOperationDelete("vit/"),
        CommitOperationDelete("empty.bin"),
    ]
    last = api.create_commit("ada/written", operations, commit_message="mixed", parent_commit=api_head(api))
    late = [CommitOperationAdd("b.txt", b"late")]
    return {
        "nothing new, no commit": unchanged.oid == first.oid,
        "late": kind_of(api.create_commit, "ada/written", late, commit_message="late", parent_commit=first.oid),
        "nothing to delete": kind_of(api.delete_file, "no.txt", "ada/written"),
        "no branch": kind_of(api.create_commit, "ada/written", late, commit_message="late", revision="no"),
        "pull request": kind_of(api.create_commit, "ada/written", late, commit_message="late", create_pr=True),
        "bad card": kind_of(
            api.upload_file, path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id="ada/written"
        ),
        "titles": [commit.title for commit in api.list_repo_commits("ada/written")],
        "head": last.oid == api_head(api),
    }


def api_head(api: HfApi) -> str:
    return api.model_info("ada/written").sha


def test_commits_add_and_delete_at_once_or_not_at_all(hub, client, tmp_path):
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    assert client.run(write_files, str(tmp_path)) == {
        "nothing new, no commit": True,
        "late": "HfHubHTTPError 412",
        "nothing to delete": "RemoteEntryNotFoundError 404",
        "no branch": "RevisionNotFoundError 404",
        "pull request": "BadRequestError 400",
        "bad card": "ValueError",
        "titles": ["mixed", "Upload empty.bin with huggingface_hub", "all of it", "initial commit"],
        "head": True,
    }
    expected = {path: FILES[path] for path in ("README.md", "config.json", "model.safetensors")} | {"a.txt": b"text"}
    files = hub.repository("ada/written").files
    assert {path: content for path, content in files.items() if path != ".gitattributes"} == expected


def upload(repo_id: str, content: bytes, path: str = "model.safetensors", token: str = ADA) -> str:
    api = HfApi(token=token)
    api.create_repo(repo_id, exist_ok=True)
    return api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=repo_id).oid


def test_large_file_goes_in_parts_and_once_only(hub, client, monkeypatch):
    monkeypatch.setattr(hub.contents, "part_bytes", 1000)
    content = bytes(range(256)) * 10
    client.run(upload, "ada/parts", content)
    assert hub.repository("ada/parts").files["model.safetensors"] == content
    assert len([request for request in hub.requests if request.startswith("PUT /large/")]) == 3
    hub.requests.clear()
    client.run(upload, "ada/parts", content, "copy.safetensors")
    assert hub.repository("ada/parts").files["copy.safetensors"] == content
    assert not [request for request in hub.requests if request.startswith("PUT")]


# Revisions


def use_revisions() -> dict:
    api = HfApi(token=ADA)
    first = api.model_info("ada/revisions").sha
    api.create_branch("ada/revisions", branch="feat/x")
    api.create_tag("ada/revisions", tag="v1.0", revision=first)
    api.upload_file(path_or_fileobj=b"2", path_in_repo="n", repo_id="ada/revisions", revision="feat/x")
    refs = api.list_repo_refs("ada/revisions")
    revisions = ("main", "feat/x", "v1.0", first)
    found = {
        "content": {r: open(hf_hub_download("ada/revisions", "n", revision=r)).read() for r in revisions[:3]},
        "sha": [api.model_info("ada/revisions", revision=r).sha == first for r in revisions],
        "files": api.list_repo_files("ada/revisions", revision="feat/x"),
        "refs": [[ref.name for ref in kind] for kind in (refs.branches, refs.tags)],
        "again": kind_of(api.create_tag, "ada/revisions", tag="v1.0"),
        "missing": kind_of(hf_hub_download, "ada/revisions", "n", revision="v9"),
        "exists": [api.revision_exists("ada/revisions", r) for r in (*revisions, "v9")],
    }
    api.delete_branch("ada/revisions", branch="feat/x")
    api.delete_tag("ada/revisions", tag="v1.0")
    return found | {"deleted": [api.revision_exists("ada/revisions", r) for r in revisions]}


def test_branches_tags_and_commits_name_snapshots(hub, client):
    hub.publish("ada/revisions", {"n": b"1"})
    assert client.run(use_revisions) == {
        "content": {"main": "1", "feat/x": "2", "v1.0": "1"},
        "sha": [True, False, True, True],
        "files": [".gitattributes", "n"],
        "refs": [["main", "feat/x"], ["v1.0"]],
        "again": "HfHubHTTPError 409",
        "missing": "RevisionNotFoundError 404",
        "exists": [True, True, True, True, False],
        "deleted": [True, False, False, True],
    }


# Faults


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT /large/", 500),
        Fault("PUT /large/"),
        Fault("preupload", 429, headers={"Retry-After": "0"}),
        Fault("objects/batch", moment="after"),
    ],
    ids=["500", "dropped", "429", "lost"],
)
def test_client_tries_again_where_it_can(hub, client, fault, request):
    repo_id = f"ada/again-{request.node.callspec.id}"
    hub.faults.append(fault)
    client.run(at_once, upload, repo_id, repo_id.encode())
    assert hub.repository(repo_id).files["model.safetensors"] == repo_id.encode()
    assert fault.seen == 2


@pytest.mark.parametrize("status", [409, 412, 500])
def test_commit_that_is_refused_changes_nothing(hub, client, status):
    repo_id = f"ada/refused-{status}"
    hub.faults.append(Fault("POST .*/commit/main", status))
    assert str(status) in client.failure(upload, repo_id, repo_id.encode()).text
    assert hub.repository(repo_id).files.keys() == {".gitattributes"}
    hub.requests.clear()
    client.run(upload, repo_id, repo_id.encode())  # what was uploaded stays
    assert hub.repository(repo_id).files["model.safetensors"] == repo_id.encode()
    assert not [request for request in hub.requests if request.startswith("PUT")]


def test_only_the_chosen_requests_fail(hub, client):
    hub.faults.append(Fault("GET /api/whoami", 403, first=2, times=2))
    assert client.run(ask_often) == ["no error", "HfHubHTTPError 403", "HfHubHTTPError 403", "no error"]


def ask_often() -> list[str]:
    return [kind_of(HfApi(token=ADA).whoami) for _ in range(4)]


def test_commit_whose_answer_is_lost_is_made(hub, client):
    hub.faults.append(Fault("POST .*/commit/main", moment="after"))
    assert "disconnected" in client.failure(upload, "ada/lost", b"lost").text
    assert hub.repository("ada/lost").files["model.safetensors"] == b"lost"


def test_download_that_breaks_off_goes_on_where_it_was(hub, client):
    content = bytes(range(256)) * 100
    hub.publish("ada/cut", {"model.safetensors": content})
    hub.faults.append(Fault("GET /ada/cut/resolve", moment="during"))
    assert client.run(at_once, download, "ada/cut") == content
    assert hub.requests.count("GET /ada/cut/resolve/main/model.safetensors") == 2


def download(repo_id: str) -> bytes:
    with open(hf_hub_download(repo_id, "model.safetensors"), "rb") as file:
        return file.read()
