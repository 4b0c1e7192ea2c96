"""The routes of the local Hub that read: repositories, their files, branches, tags and history."""

import re
from pathlib import PurePosixPath
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.hub.contents import Commit, File, Repository
from tests.hub.requests import commit_of, contents_of, known_user, part, readable, repository_of, user_of, writable


async def whoami(request: Request) -> Response:
    return JSONResponse({"type": "user", "name": known_user(request), "orgs": [], "auth": {"type": "access_token"}})


def _describe(repository: Repository, commit: Commit, with_blobs: bool = False) -> dict:
    card_data = commit.card_data()
    siblings = [
        {"rfilename": path}
        | ({"size": len(file.content), "blobId": file.oid, **file.large_info("sha256")} if with_blobs else {})
        for path, file in sorted(commit.files.items())
    ]
    return {
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.owner,
        "sha": commit.sha,
        "private": repository.private,
        "gated": "manual" if repository.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card_data.get("tags", []),
        "cardData": card_data,
        "pipeline_tag": card_data.get("pipeline_tag"),
        "library_name": card_data.get("library_name"),
        "lastModified": commit.date,
        "createdAt": next(iter(repository.commits.values())).date,
        "siblings": siblings,
    }


async def repository_info(request: Request) -> Response:
    repository = repository_of(request)
    with_blobs = request.query_params.get("blobs", "").lower() in ("1", "true")
    return JSONResponse(_describe(repository, commit_of(request, repository), with_blobs))


async def list_repositories(request: Request) -> Response:
    author, user = request.query_params.get("author"), user_of(request)
    found = [r for r in contents_of(request).repositories.values() if not r.private or r.owner == user]
    return JSONResponse([_describe(r, r.find("main")) for r in found if author in (None, r.owner)])


def _tree_file(path: str, file: File, commit: Commit) -> dict:
    last = {"id": commit.sha, "title": commit.title, "date": commit.date}
    info = {"type": "file", "path": path, "oid": file.oid, "size": len(file.content), "lastCommit": last}
    return info | file.large_info("oid")


def _tree_folder(path: str, commit: Commit) -> dict:
    last = {"id": commit.sha, "title": commit.title, "date": commit.date}
    return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0, "lastCommit": last}


def _folders(commit: Commit) -> set[str]:
    return {str(folder) for path in commit.files for folder in PurePosixPath(path).parents} - {"."}


async def tree(request: Request) -> Response:
    commit = commit_of(request, repository_of(request))
    top = part(request, "path").rstrip("/") if "path" in request.path_params else "."
    if top != "." and top not in _folders(commit):
        commit.file(top)  # a folder that is not there is answered like a file that is not
    is_recursive = request.query_params.get("recursive", "").lower() in ("1", "true")

    def is_listed(path: str) -> bool:
        parents = [str(folder) for folder in PurePosixPath(path).parents]
        return top in parents if is_recursive else parents[0] == top

    folders = [_tree_folder(path, commit) for path in sorted(_folders(commit)) if is_listed(path)]
    files = [_tree_file(path, file, commit) for path, file in sorted(commit.files.items()) if is_listed(path)]
    return JSONResponse(folders + files)


async def paths_info(request: Request) -> Response:
    commit = commit_of(request, repository_of(request))
    paths = [path.rstrip("/") for path in parse_qs((await request.body()).decode()).get("paths", [])]
    folders = [_tree_folder(path, commit) for path in paths if path in _folders(commit)]
    return JSONResponse(
        folders + [_tree_file(path, commit.files[path], commit) for path in paths if path in commit.files]
    )


async def resolve(request: Request) -> Response:
    """A file or a part of it; to HEAD the server sends the headers alone."""
    commit = commit_of(request, readable(request))
    file = commit.file(part(request, "path"))
    headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if file.is_large:
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not wanted:
        return Response(file.content, headers=headers, media_type="application/octet-stream")
    first, last = int(wanted[1]), min(int(wanted[2] or len(file.content)), len(file.content) - 1)
    if first > last:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(file.content)}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{len(file.content)}"
    return Response(file.content[first : last + 1], 206, headers, "application/octet-stream")


async def refs(request: Request) -> Response:
    repository = repository_of(request)

    def listed(known: dict[str, Commit], kind: str) -> list[dict]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": commit.sha} for n, commit in known.items()]

    branches, tags = listed(repository.branches, "heads"), listed(repository.tags, "tags")
    return JSONResponse({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


async def history(request: Request) -> Response:
    commit, found = commit_of(request, repository_of(request)), []
    while commit is not None:
        entry = {"id": commit.sha, "title": commit.title, "message": commit.description, "date": commit.date}
        found.append(entry | {"authors": [{"user": commit.author}]})
        commit = commit.parent
    return JSONResponse(found)


async def may_read(request: Request) -> Response:
    readable(request)
    return JSONResponse({})


async def may_write(request: Request) -> Response:
    writable(request)
    return JSONResponse({})


MODEL = "/api/models/{owner}/{name}"
ROUTES = [
    Route("/api/whoami-v2", whoami),
    Route("/api/models", list_repositories),
    Route(MODEL, repository_info),
    Route(f"{MODEL}/revision/{{revision}}", repository_info),
    Route(f"{MODEL}/tree/{{revision}}", tree),
    Route(f"{MODEL}/tree/{{revision}}/{{path:path}}", tree),
    Route(f"{MODEL}/paths-info/{{revision}}", paths_info, methods=["POST"]),
    Route(f"{MODEL}/refs", refs),
    Route(f"{MODEL}/commits/{{revision}}", history),
    Route(f"{MODEL}/auth-check", may_read),
    Route(f"{MODEL}/auth-check/write", may_write),
    Route("/{owner}/{name}/resolve/{revision}/{path:path}", resolve),
]
