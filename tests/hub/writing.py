"""The routes of the local Hub that write: repositories, commits, large files, branches and tags."""

import base64
import hashlib
import json
import secrets
from math import ceil

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.hub.contents import Commit, File, HubError, card_data
from tests.hub.reading import MODEL
from tests.hub.requests import commit_of, contents_of, known_user, part, writable


def _page(request: Request, name: str) -> str:
    return f"{request.base_url}{name}"


async def create_repository(request: Request) -> Response:
    asked, user, contents = await request.json(), known_user(request), contents_of(request)
    owner = asked.get("organization") or user
    name = f"{owner}/{asked['name']}"
    if owner != user:
        raise HubError(403, f"You don't have the rights to create a model under the namespace {owner!r}.")
    if name in contents.repositories:
        raise HubError(409, "You already created this model repo", url=_page(request, name))
    contents.create(name, private=asked.get("visibility") == "private")
    return JSONResponse({"url": _page(request, name), "name": name})


async def delete_repository(request: Request) -> Response:
    asked = await request.json()
    request.scope["path_params"] = {"owner": asked.get("organization") or known_user(request), "name": asked["name"]}
    del contents_of(request).repositories[writable(request).name]
    return JSONResponse({})


async def move_repository(request: Request) -> Response:
    asked = await request.json()
    owner, _, name = asked["fromRepo"].partition("/")
    request.scope["path_params"] = {"owner": owner, "name": name}
    contents_of(request).move(writable(request).name, asked["toRepo"])
    return JSONResponse({})


async def change_settings(request: Request) -> Response:
    repository, asked = writable(request), await request.json()
    if "visibility" in asked:
        repository.private = asked["visibility"] == "private"
    if "gated" in asked:
        repository.gated = bool(asked["gated"])
    return JSONResponse({})


async def validate_card(request: Request) -> Response:
    problem = None
    try:
        if not isinstance(card_data((await request.json())["content"]), dict):
            problem = "The metadata must be a mapping."
    except yaml.YAMLError as error:
        problem = str(error)
    errors = [{"message": problem}] if problem else []
    return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)


async def preupload(request: Request) -> Response:
    """How each file is to be sent, and the hash of the one that is there already."""
    commit, answers = commit_of(request, writable(request)), []
    for asked in (await request.json())["files"]:
        path, old = asked["path"], commit.files.get(asked["path"])
        is_large = commit.is_large(path, asked["size"], base64.b64decode(asked["sample"]))
        answer = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
        answers.append(answer | ({"oid": old.etag} if old else {}))
    return JSONResponse({"files": answers, "commitOid": commit.sha})


def _delete(files: dict[str, File], path: str, is_folder: bool) -> dict[str, File]:
    path = path.rstrip("/")
    kept = {p: f for p, f in files.items() if p != path and not (is_folder and p.startswith(f"{path}/"))}
    if len(kept) == len(files):
        raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
    return kept


def _apply(request: Request, files: dict[str, File], operation: dict) -> dict[str, File]:
    kind, value = operation["key"], operation["value"]
    if kind in ("deletedFile", "deletedFolder"):
        return _delete(files, value["path"], kind == "deletedFolder")
    if kind == "file":
        return {**files, value["path"]: File(base64.b64decode(value["content"]))}
    if kind != "lfsFile":
        raise HubError(400, f"Unknown operation {kind!r}")
    content = contents_of(request).large.get(value["oid"])
    if content is None:
        raise HubError(400, f"LFS pointer of {value['path']!r} points to a file that was not uploaded")
    return {**files, value["path"]: File(content, is_large=True)}


async def commit(request: Request) -> Response:
    repository, branch = writable(request), part(request, "revision")
    if "create_pr" in request.query_params:
        raise HubError(400, "This Hub has no pull requests")
    if branch not in repository.branches:
        raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
    header, parent = lines[0]["value"], repository.branches[branch]  # read after the body: what follows is one step
    if header.get("parentCommit") not in (None, parent.sha):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = parent.files
    for operation in lines[1:]:
        files = _apply(request, files, operation)
    made = repository.commit(files, header["summary"], header.get("description", ""), branch)
    url = f"{_page(request, repository.name)}/commit/{made.sha}"
    return JSONResponse({"success": True, "commitOid": made.sha, "commitUrl": url})


async def large_files(request: Request) -> Response:
    """Where to send large files: at once, or in parts; the addresses carry a ticket, for the client sends no token."""
    writable(request)
    contents, answers = contents_of(request), []
    for asked in (await request.json())["objects"]:
        answer = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in contents.large:
            ticket = secrets.token_hex(16)
            request.app.state.tickets[ticket] = {"oid": asked["oid"], "parts": {}}
            address, header = f"{request.base_url}large/{ticket}", {}
            if asked["size"] > contents.part_bytes:
                count = ceil(asked["size"] / contents.part_bytes)
                header = {f"{number:05}": f"{address}/{number}" for number in range(1, count + 1)}
                header["chunk_size"] = str(contents.part_bytes)
            verify = {"href": f"{request.base_url}large/verify"}
            answer["actions"] = {"upload": {"href": address, "header": header}, "verify": verify}
        answers.append(answer)
    return JSONResponse({"transfer": "basic", "objects": answers})


def _ticket(request: Request) -> dict:
    try:
        return request.app.state.tickets[part(request, "ticket")]
    except KeyError as error:
        raise HubError(403, "Signature does not match") from error


def _store(request: Request, content: bytes, oid: str) -> Response:
    if hashlib.sha256(content).hexdigest() != oid:
        raise HubError(400, "Content does not have the sha256 that was announced")
    contents_of(request).large[oid] = content
    return JSONResponse({})


async def store_large(request: Request) -> Response:
    return _store(request, await request.body(), _ticket(request)["oid"])


async def store_part(request: Request) -> Response:
    content = await request.body()
    _ticket(request)["parts"][int(part(request, "number"))] = content
    return Response(headers={"ETag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'})


async def join_parts(request: Request) -> Response:
    ticket, asked = _ticket(request), await request.json()
    parts = [ticket["parts"].get(entry["partNumber"], b"") for entry in asked["parts"]]
    return _store(request, b"".join(parts), ticket["oid"])


async def verify_large(request: Request) -> Response:
    known_user(request)
    asked = await request.json()
    if len(contents_of(request).large.get(asked["oid"], b"")) != asked["size"]:
        raise HubError(404, "Object does not exist")
    return JSONResponse({})


def _add_name(known: dict[str, Commit], name: str, target: Commit) -> Response:
    if name in known:
        raise HubError(409, f"Reference {name!r} already exists")
    known[name] = target
    return JSONResponse({}, 201)


def _remove_name(known: dict[str, Commit], name: str) -> Response:
    if known.pop(name, None) is None:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return JSONResponse({})


async def create_branch(request: Request) -> Response:
    repository, asked = writable(request), await request.json()
    return _add_name(repository.branches, part(request, "branch"), repository.find(asked.get("startingPoint", "main")))


async def delete_branch(request: Request) -> Response:
    return _remove_name(writable(request).branches, part(request, "branch"))


async def create_tag(request: Request) -> Response:
    repository, asked = writable(request), await request.json()
    return _add_name(repository.tags, asked["tag"], commit_of(request, repository))


async def delete_tag(request: Request) -> Response:
    return _remove_name(writable(request).tags, part(request, "revision"))


ROUTES = [
    Route("/api/repos/create", create_repository, methods=["POST"]),
    Route("/api/repos/delete", delete_repository, methods=["DELETE"]),
    Route("/api/repos/move", move_repository, methods=["POST"]),
    Route("/api/validate-yaml", validate_card, methods=["POST"]),
    Route(f"{MODEL}/settings", change_settings, methods=["PUT"]),
    Route(f"{MODEL}/preupload/{{revision}}", preupload, methods=["POST"]),
    Route(f"{MODEL}/commit/{{revision}}", commit, methods=["POST"]),
    Route(f"{MODEL}/branch/{{branch}}", create_branch, methods=["POST"]),
    Route(f"{MODEL}/branch/{{branch}}", delete_branch, methods=["DELETE"]),
    Route(f"{MODEL}/tag/{{revision}}", create_tag, methods=["POST"]),
    Route(f"{MODEL}/tag/{{revision}}", delete_tag, methods=["DELETE"]),
    Route("/{owner}/{name}.git/info/lfs/objects/batch", large_files, methods=["POST"]),
    Route("/large/verify", verify_large, methods=["POST"]),
    Route("/large/{ticket}", store_large, methods=["PUT"]),
    Route("/large/{ticket}", join_parts, methods=["POST"]),
    Route("/large/{ticket}/{number}", store_part, methods=["PUT"]),
]
