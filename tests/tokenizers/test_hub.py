"""pull, from a server on this machine that answers as the hub does, with one repository of several commits."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest
from mmgen_tokenizers import cli
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pretrained.published import ELSEWHERE, FILES, KNOWN, PUBLISHED, file_of

pytest.importorskip("huggingface_hub", reason="pull needs the extra `hub`")
from mmgen_tokenizers.hub import NOTE, pull  # noqa: E402

REPO, FILE, COMMIT = "somebody/weights", "deep/vq.pt", "0123456789abcdef0123456789abcdef01234567"
LATER = COMMIT[::-1]
CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        self.answer(self.server.content)

    def answer(self, body):
        first = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        self.server.seen.append((self.command, first))
        _, owner, name, _, revision, file = unquote(self.path).split("/", 5)
        served, commits = (f"{owner}/{name}", file) in self.server.files, self.server.commits
        commit = commits[-1] if revision == "main" else revision
        if not served or commit not in commits:
            self.send_error(404)
            return
        if self.server.down and self.command == "GET":
            self.send_error(500)
            return
        size = len(self.server.content)
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", self.server.says or commit)
        self.send_header("ETag", f'"{self.server.etag}"')
        self.send_header("Content-Length", str(size - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.end_headers()
        self.wfile.write(body[first:])

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.content, server.etag, server.seen = CONTENT, SHA, []
    server.files, server.commits, server.says = {(REPO, FILE), FILES["VQ-16"]}, [COMMIT], None
    server.down = False
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_comes_whole_is_noted_and_not_fetched_twice(hub, tmp_path, capsys):
    command = ["pull", REPO, FILE, "--revision", COMMIT, "--sha256", SHA, "--out", str(tmp_path / "w")]
    assert cli.main(command) == 0
    assert f"SHA-256 {SHA}, as asked for" in capsys.readouterr().out
    assert (tmp_path / "w" / "vq.pt").read_bytes() == CONTENT
    noted = {"repo": REPO, "file": FILE, "revision": COMMIT, "sha256": SHA}
    assert json.loads((tmp_path / "w" / NOTE).read_text()) == {"vq.pt": noted}
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == [NOTE, "vq.pt"]
    asked = len(hub.seen)
    assert cli.main(command) == 0 and len(hub.seen) == asked
    with pytest.raises(UserError, match="correct --sha256, or delete"):
        pull(REPO, FILE, tmp_path / "w", COMMIT, "0" * 64)
    with pytest.raises(UserError, match="choose another folder"):
        pull("others/weights", FILE, tmp_path / "w", COMMIT)
    (tmp_path / "w" / "vq.pt").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="was changed since it was fetched"):
        pull(REPO, FILE, tmp_path / "w", COMMIT)


def test_a_stopped_run_goes_on_where_it_was(hub, tmp_path):
    (tmp_path / f".vq.pt.{COMMIT[:12]}.part").write_bytes(CONTENT[:100_000])
    path, revision, found = pull(REPO, FILE, tmp_path, COMMIT)
    assert path.read_bytes() == CONTENT and (revision, found) == (COMMIT, SHA)
    assert [first for command, first in hub.seen if command == "GET"] == [100_000]


def test_what_is_not_what_was_asked_for_is_removed(hub, tmp_path):
    with pytest.raises(UserError, match=f"came with SHA-256 {SHA}, not 0000"):
        pull(REPO, FILE, tmp_path, COMMIT, "0" * 64)
    hub.content = CONTENT[:-1] + b"!"  # damaged on its way: the server promises another hash
    with pytest.raises(UserError, match=f"not {SHA}: removed"):
        pull(REPO, FILE, tmp_path, COMMIT)
    hub.says = "f" * 40
    with pytest.raises(UserError, match="the server gives deep/vq.pt of commit ffff"):
        pull(REPO, FILE, tmp_path, COMMIT)
    assert [p.name for p in tmp_path.iterdir()] == [NOTE]
    (tmp_path / "vq.pt").write_bytes(CONTENT)  # put there by hand
    with pytest.raises(UserError, match="choose another folder"):
        pull(REPO, FILE, tmp_path, COMMIT)


def test_weights_are_pulled_by_name_and_stay_at_their_first_commit(hub, tmp_path, capsys):
    command = ["pull", "VQ-16", "--out", str(tmp_path)]
    path, note = tmp_path / FILES["VQ-16"][1], tmp_path / NOTE
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert f"of FoundationVision/LlamaGen at commit {COMMIT}" in said and f"convert llamagen-vq {path} --out DIR" in said
    first = note.read_text()
    assert json.loads(first)[path.name]["revision"] == COMMIT
    hub.commits.append(LATER)
    assert cli.main(command) == 0 and note.read_text() == first  # still there
    path.rename(tmp_path / f".{path.name}.{COMMIT[:12]}.part")  # as after a stop before the end, or
    assert cli.main(command) == 0 and note.read_text() == first and path.read_bytes() == CONTENT
    path.unlink()  # removed
    assert cli.main(command) == 0 and note.read_text() == first
    assert cli.main([*command, "--revision", LATER]) == 2 and "choose another folder" in capsys.readouterr().err
    path.unlink()
    assert cli.main([*command, "--revision", LATER]) == 0 and json.loads(note.read_text())[path.name]["revision"] == LATER


def test_a_stopped_run_goes_on_with_its_commit(hub, tmp_path):
    hub.files.clear()
    with pytest.raises(UserError, match="cannot fetch deep/vq.pt of somebody/weights at main: .*404"):
        pull(REPO, FILE, tmp_path)
    hub.files.add((REPO, FILE))
    hub.down = True
    with pytest.raises(UserError, match="cannot fetch deep/vq.pt of somebody/weights at 0123456789ab: .*500"):
        pull(REPO, FILE, tmp_path)
    (tmp_path / f".vq.pt.{COMMIT[:12]}.part").write_bytes(CONTENT[:100_000])
    hub.down = False
    hub.commits.append(LATER)
    hub.seen.clear()
    assert pull(REPO, FILE, tmp_path) == (tmp_path / "vq.pt", COMMIT, SHA)
    assert [first for command, first in hub.seen if command == "GET"] == [100_000]


def test_names_that_cannot_be_pulled():
    assert FILES.keys() <= PUBLISHED.keys()
    for name, weights in PUBLISHED.items():
        assert (name in FILES) != (weights.family in ELSEWHERE)
    for name, said in {
        "taming-f16-1024": "see github.com/CompVis",
        next(iter(KNOWN)): "not supported yet",
        "VQ16": "Did you mean 'VQ-16'?",
        REPO: "pull somebody/weights FILE",
    }.items():
        with pytest.raises(UserError, match=said.replace("?", "[?]")):
            file_of(name)


def test_a_moving_revision_and_an_absent_file_are_refused(hub, tmp_path):
    with pytest.raises(UserError, match="revision 'main' is no 40 hexadecimal digits"):
        pull(REPO, FILE, tmp_path, "main")
    with pytest.raises(UserError, match="sha256 'abc' is no 64"):
        pull(REPO, FILE, tmp_path, COMMIT, "abc")
    with pytest.raises(UserError, match="cannot fetch other.pt of somebody/weights at 0123456789ab: .*404"):
        pull(REPO, "other.pt", tmp_path, COMMIT)
