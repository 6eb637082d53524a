"""Files of published weights, fetched through huggingface_hub: of one commit, in pieces if need be, and checked.

We have seen none of the files and so ship no hashes of them. Whoever pulls names the commit, and the hash if it is known, for
example from the page of the file; what came is noted in pulled.json beside it.
"""

import hashlib
import os
import re
from pathlib import Path
from types import ModuleType

from .errors import UserError
from .files import read_json, write_json

NOTE = "pulled.json"


def pull(repo: str, file: str, out: str | Path, revision: str, sha256: str | None = None) -> tuple[Path, str]:
    """Fetches FILE of the commit `revision` of REPO into the folder `out`; returns its path and its SHA-256.

    What a run that was stopped has fetched is not fetched again, and a file that is there is only checked. What comes with
    another hash than `sha256`, or than the server says, is removed. Raises UserError for these, for a revision that is no
    commit, and where nothing can be fetched.
    """
    for name, value, digits in (("revision", revision, 40), ("sha256", sha256, 64)):
        if value is not None and not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
            raise UserError(f"{name} {value!r} is no {digits} hexadecimal digits: branches and tags move, name a commit")
    path = Path(out) / Path(file).name
    asked = {"repo": repo, "file": file, "revision": revision}
    if path.exists():
        return path, _again(path, asked, sha256)
    part = path.with_name(f".{path.name}.{revision[:12]}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    promised, found = _fetch(repo, file, revision, part), _sha256(part)
    for wanted in filter(None, (sha256, promised)):
        if wanted != found:
            part.unlink()
            raise UserError(
                f"{file} of {repo} came with SHA-256 {found}, not {wanted}: removed. Fetch it again or correct --sha256"
            )
    part.rename(path)
    write_json(path.with_name(NOTE), _noted(path) | {path.name: {**asked, "sha256": found}})
    return path, found


def _again(path: Path, asked: dict[str, str], sha256: str | None) -> str:
    """The hash of a file that is there. Raises UserError where it is not what is asked for."""
    noted = _noted(path).get(path.name, {})
    if {name: noted.get(name) for name in asked} != asked:
        raise UserError(f"{path} is there already, and {NOTE} does not say that it is this file: choose another folder")
    found = _sha256(path)
    if found != noted["sha256"]:
        raise UserError(f"{path} was changed since it was fetched: delete it and fetch it again")
    if sha256 not in (None, found):
        raise UserError(f"{path} has SHA-256 {found}, not {sha256}: correct --sha256, or delete the file")
    return found


def _noted(path: Path) -> dict[str, dict[str, str]]:
    """What is noted of the files beside this one."""
    note = path.with_name(NOTE)
    return read_json(note) if note.is_file() else {}


def _hub() -> ModuleType:
    try:
        import huggingface_hub.file_download
        import huggingface_hub.utils
    except ImportError:
        raise UserError("fetching needs huggingface_hub: pip install 'mmgen-tokenizers[hub]'") from None
    return huggingface_hub


def _fetch(repo: str, file: str, revision: str, part: Path) -> str | None:
    """Appends to `part` what it lacks; returns the SHA-256 that the server promises, if it does."""
    hub = _hub()
    try:
        url = hub.hf_hub_url(repo, file, revision=revision, endpoint=os.environ.get("HF_ENDPOINT"))  # else read at import only
        about = hub.get_hf_file_metadata(url)
        if about.commit_hash != revision:
            raise UserError(f"the server gives {file} of commit {about.commit_hash} where {revision} was asked for")
        with part.open("ab") as target:
            headers = hub.utils.build_hf_headers()
            hub.file_download.http_get(url, target, resume_size=target.tell(), headers=headers, expected_size=about.size)
    except UserError:
        raise
    except (
        Exception
    ) as error:  # of the hub and of the library under it, which its version decides; the part stays, to go on from
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot fetch {file} of {repo} at {revision[:12]}: {first}") from error
    return about.etag if about.etag and re.fullmatch(r"[0-9a-f]{64}", about.etag) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
