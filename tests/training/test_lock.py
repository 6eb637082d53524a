"""A run folder belongs to one process."""

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys

import pytest
from mmgen_tokenizers.errors import UserError
from models import tokenizer_experiment

import mmgen
from mmgen.training import loop
from mmgen.training.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from mmgen.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_kept_out_and_a_killed_one_holds_nothing(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"in use by process {holder.pid} on {re.escape(socket.gethostname())}: let it"):
            mmgen.train(tokenizer_experiment(), folder)
        assert [path.name for path in folder.iterdir()] == [".lock"]
        loop.claim(folder, tokenizer_experiment())
        with pytest.raises(UserError, match="in use by process"):
            loop.export(folder, tmp_path / "out")
    finally:
        holder.kill()
        holder.communicate()
    with locked(folder), pytest.raises(UserError, match=f"in use by process {os.getpid()} on"), locked(folder):
        pass
    with locked(folder):  # what raised let go
        pass


def test_where_files_cannot_be_locked_nobody_is_kept_out(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path), locked(tmp_path):
        pass


def test_an_error_within_is_not_taken_for_a_missing_lock(tmp_path):
    with pytest.raises(OSError, match="mine"), locked(tmp_path):
        raise OSError("mine")
