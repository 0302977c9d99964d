"""Downloads: whole or not at all, and a line that helps when there is no network."""

from __future__ import annotations

import hashlib
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mnvision.backbones.pretrained.download import cache_folder, fetch, reachable, write_whole
from mnvision.backbones.pretrained.sources import read_weights
from mnvision.errors import UserError

CONTENT = b"\x1f\x8b" + bytes(range(256)) * 300


class Handler(BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        body = {"/good": CONTENT, "/short": CONTENT, "/page": b"<html>", "/empty": b""}.get(self.path)
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write((body or b"")[: 1000 if self.path == "/short" else None])

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_downloads_once(server, tmp_path):
    path = tmp_path / "a" / "file.gz"
    checksum = hashlib.sha256(CONTENT).hexdigest()
    before = Handler.requests
    for _ in range(2):
        assert fetch(f"{server}/good", path, b"\x1f\x8b", checksum).read_bytes() == CONTENT
    assert Handler.requests == before + 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("/short", "cannot download .*/short .*put it at .*file.gz"),
        ("/empty", "cannot download .*put it at"),
        ("/missing", "cannot download .*Not Found.*put it at"),
        ("/page", "what the server sent is not such a file"),
        ("/good", "another checksum than the published 00"),
    ],
)
def test_nothing_is_left_of_a_bad_download(server, tmp_path, page, message):
    with pytest.raises(UserError, match=message) as caught:
        fetch(server + page, tmp_path / "file.gz", b"\x1f\x8b", "00")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_no_room(server, tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(UserError, match=r"cannot write .*file.gz: No space left on device"):
        fetch(f"{server}/good", tmp_path / "file.gz", b"")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*x: No space left on device"):
        write_whole(tmp_path / "x", b"1")


def test_reachable(server):
    assert reachable(server)
    assert not reachable("http://127.0.0.1:9")


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MNVISION_CACHE", str(tmp_path))
    assert cache_folder("keras") == tmp_path / "weights" / "keras"
    assert cache_folder("keras", tmp_path / "x") == tmp_path / "x" / "weights" / "keras"
    monkeypatch.delenv("MNVISION_CACHE")
    assert cache_folder("keras") == Path.home() / ".cache" / "mnvision" / "weights" / "keras"


@pytest.mark.parametrize(
    ("source", "url", "place"),
    [
        (
            "keras/0.75_192",
            "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/mobilenet_7_5_192_tf.h5",
            "weights/keras/mobilenet_7_5_192_tf.h5",
        ),
        (
            "keras/1.0_128_no_top",
            "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/mobilenet_1_0_128_tf_no_top.h5",
            "weights/keras/mobilenet_1_0_128_tf_no_top.h5",
        ),
        (
            "tfslim/0.50_160_quant",
            "https://storage.googleapis.com/download.tensorflow.org/models/mobilenet_v1_2018_08_02/"
            "mobilenet_v1_0.5_160_quant.tgz",
            "weights/tfslim/mobilenet_v1_0.5_160_quant.tgz",
        ),
    ],
)
def test_offline_names_the_file_and_its_place(source, url, place, tmp_path, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError) as caught:
        read_weights(source, tmp_path)
    assert str(caught.value) == (
        f"cannot download {url} (no network): get the file on a connected machine and put it at {tmp_path / place}"
    )
