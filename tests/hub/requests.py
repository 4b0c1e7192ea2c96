"""What a request to the local Hub means: who sends it, which repository it names, and whether that is allowed."""

from urllib.parse import unquote

from starlette.requests import Request

from tests.hub.contents import Commit, Contents, HubError, Repository


class MovedError(Exception):
    """The repository has a new name."""

    def __init__(self, old_name: str, new_name: str):
        super().__init__(new_name)
        self.old_name, self.new_name = old_name, new_name


def contents_of(request: Request) -> Contents:
    return request.app.state.contents


def part(request: Request, name: str) -> str:
    """A part of the path, as it was before the client quoted it."""
    return unquote(request.path_params[name])


def user_of(request: Request) -> str | None:
    """The name that belongs to the token; None without a token."""
    header = request.headers.get("Authorization")
    if header is None:
        return None
    name = contents_of(request).users.get(header.removeprefix("Bearer "))
    if name is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return name


def known_user(request: Request) -> str:
    user = user_of(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    return user


def repository_of(request: Request) -> Repository:
    """The repository that a path names, if who asks may know of it."""
    contents, user = contents_of(request), user_of(request)
    name = f"{part(request, 'owner')}/{part(request, 'name')}"
    if name in contents.moved and name not in contents.repositories:
        raise MovedError(name, contents.moved[name])
    repository = contents.repositories.get(name)
    if repository is None or (repository.private and user != repository.owner):
        raise no_repository(user)
    return repository


def no_repository(user: str | None) -> HubError:
    """The same answer for a repository that is missing and for a private one of somebody else."""
    if user is None:
        return HubError(401, "Invalid username or password.", "RepoNotFound")
    return HubError(404, "Repository not found", "RepoNotFound")


def writable(request: Request) -> Repository:
    repository = repository_of(request)
    if known_user(request) != repository.owner:
        raise HubError(403, f"You don't have the rights to write to {repository.name}.")
    return repository


def readable(request: Request) -> Repository:
    """The repository, if who asks may read its files."""
    repository, user = repository_of(request), user_of(request)
    restricted = f"Access to model {repository.name} is restricted"
    if repository.gated and user is None:
        message = f"{restricted}. You must have access to it and be authenticated to access it. Please log in."
        raise HubError(401, message, "GatedRepo")
    if repository.gated and user not in {repository.owner, *repository.readers}:
        message = f"{restricted} and you are not in the authorized list. Visit {repository.name} to ask for access."
        raise HubError(403, message, "GatedRepo")
    return repository


def commit_of(request: Request, repository: Repository) -> Commit:
    return repository.find(part(request, "revision") if "revision" in request.path_params else "main")
