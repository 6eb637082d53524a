"""Files of published weights, fetched through huggingface_hub: of one commit, in pieces if need be, and checked.

We have seen none of the files and so ship no commits and no hashes of them. Whoever pulls names both if they are known, for
example from the page of the file; otherwise the commit is the newest one at the first time. pulled.json beside the file notes
what is fetched, so that the next time it is the same.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from .errors import UserError
from .files import read_json, write_json

NOTE = "pulled.json"


class Pulled(NamedTuple):
    path: Path
    revision: str  # the commit
    sha256: str


def pull(repo: str, file: str, out: str | Path, revision: str | None = None, sha256: str | None = None) -> Pulled:
    """Fetches FILE of the commit `revision` of REPO into the folder `out`. Without a revision: of the commit that is noted
    there, or else of the newest one.

    What a run that was stopped has fetched is not fetched again, and a file that is there is only checked. What comes with
    another hash than `sha256`, or than the server says, is removed. Raises UserError for these, for a revision that is no
    commit, and where nothing can be fetched.
    """
    for name, value, digits in (("revision", revision, 40), ("sha256", sha256, 64)):
        if value is not None and not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
            raise UserError(f"{name} {value!r} is no {digits} hexadecimal digits: branches and tags move, name a commit")
    path = Path(out) / Path(file).name
    noted, asked = _noted(path).get(path.name, {}), {"repo": repo, "file": file}
    if revision is None and asked.items() <= noted.items():
        revision = noted["revision"]
    if path.exists():
        return _again(path, noted, asked | {"revision": revision}, sha256)
    revision = revision or _about(repo, file, "main").commit_hash
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{revision[:12]}.part")
    promised, found = _fetch(path, part, asked | {"revision": revision}), _sha256(part)
    for wanted in filter(None, (sha256, promised)):
        if wanted != found:
            part.unlink()
            raise UserError(
                f"{file} of {repo} came with SHA-256 {found}, not {wanted}: removed. Fetch it again or correct --sha256"
            )
    _note(path, {**asked, "revision": revision, "sha256": found})
    part.rename(path)
    return Pulled(path, revision, found)


def _again(path: Path, noted: dict[str, str], asked: dict[str, str | None], sha256: str | None) -> Pulled:
    """A file that is there. Raises UserError where it is not what is asked for."""
    if "sha256" not in noted or not asked.items() <= noted.items():
        raise UserError(f"{path} is there already, and {NOTE} does not say that it is this file: choose another folder")
    found = _sha256(path)
    if found != noted["sha256"]:
        raise UserError(f"{path} was changed since it was fetched: delete it and fetch it again")
    if sha256 not in (None, found):
        raise UserError(f"{path} has SHA-256 {found}, not {sha256}: correct --sha256, or delete the file")
    return Pulled(path, noted["revision"], found)


def _noted(path: Path) -> dict[str, dict[str, str]]:
    """What is noted of the files beside this one."""
    note = path.with_name(NOTE)
    return read_json(note) if note.is_file() else {}


def _note(path: Path, entry: dict[str, str]) -> None:
    write_json(path.with_name(NOTE), _noted(path) | {path.name: entry})


def _hub() -> ModuleType:
    try:
        import huggingface_hub.file_download
        import huggingface_hub.utils
    except ImportError:
        raise UserError("fetching needs huggingface_hub: pip install 'mmgen-tokenizers[hub]'") from None
    return huggingface_hub


def _url(repo: str, file: str, revision: str) -> str:
    return _hub().hf_hub_url(repo, file, revision=revision, endpoint=os.environ.get("HF_ENDPOINT"))  # else read at import only


def _about(repo: str, file: str, revision: str) -> Any:
    """What the server says of a file: commit_hash, etag, size. `revision`: a commit, or "main" for the newest one."""
    with _cannot_fetch(repo, file, revision):
        about = _hub().get_hf_file_metadata(_url(repo, file, revision))
    if revision not in ("main", about.commit_hash) or not re.fullmatch(r"[0-9a-f]{40}", about.commit_hash or ""):
        raise UserError(f"the server gives {file} of commit {about.commit_hash} where {revision} was asked for")
    return about


def _fetch(path: Path, part: Path, asked: dict[str, str]) -> str | None:
    """Appends to `part` what it lacks, after a note of it; returns the SHA-256 that the server promises, if it does."""
    about, hub = _about(**asked), _hub()
    _note(path, asked)
    with _cannot_fetch(**asked), part.open("ab") as target:
        headers, begun = hub.utils.build_hf_headers(), target.tell()
        hub.file_download.http_get(_url(**asked), target, resume_size=begun, headers=headers, expected_size=about.size)
    return about.etag if about.etag and re.fullmatch(r"[0-9a-f]{64}", about.etag) else None


@contextlib.contextmanager
def _cannot_fetch(repo: str, file: str, revision: str) -> Iterator[None]:
    """One clear line for any error of the hub and of the library under it, which its version decides."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # what was fetched stays, to go on from
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot fetch {file} of {repo} at {revision[:12]}: {first}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
