"""Downloads from a local server: what arrives whole is kept, everything else leaves nothing behind."""

import errno
import gc
import gzip
import hashlib
import io
import re
import shutil
import socket
import threading
import warnings
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import files
from data.files import DataError, RemoteFile, data_folder, locate

# pooch leaves the socket of a broken download to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

CONTENT = b"1.0 2.0 3.0\n" * 500
OTHER = b"another edition\n"


def zipped(content: bytes, member: str = "inner/table.txt", method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(member, content)
    return buffer.getvalue()


def flipped(archive: bytes, member: str = "inner/table.txt") -> bytes:
    """The archive with bytes of the member's data changed, its directory intact."""
    start = archive.index(member.encode()) + len(member)
    damaged = bytearray(archive)
    for i in range(start, start + 12):
        damaged[i] ^= 0xFF
    return bytes(damaged)


BODIES = {
    "/good.txt": CONTENT,
    "/tampered.txt": CONTENT.replace(b"2.0", b"2.1", 1),
    "/short.txt": CONTENT[:-100],
    "/good.zip": zipped(CONTENT),
    "/deflated.zip": zipped(CONTENT, method=zipfile.ZIP_DEFLATED),
    "/other-member.zip": zipped(CONTENT, member="else.txt"),
    "/tampered-member.zip": zipped(OTHER),
    "/truncated.zip": zipped(CONTENT)[:-50],
    "/flipped-stored.zip": flipped(zipped(CONTENT)),
    "/flipped-deflated.zip": flipped(zipped(CONTENT, method=zipfile.ZIP_DEFLATED)),
    "/no-zip.zip": b"<html>moved</html>",
    "/good.txt.gz": gzip.compress(CONTENT),
    "/tampered.txt.gz": gzip.compress(OTHER),
    "/truncated.txt.gz": gzip.compress(CONTENT)[:-12],
    "/flipped.txt.gz": gzip.compress(CONTENT)[:15] + b"\xff" * 8 + gzip.compress(CONTENT)[23:],
    "/checksum.txt.gz": gzip.compress(CONTENT)[:-8] + bytes(8),
    "/no-gzip.txt.gz": b"<html>moved</html>",
    "/empty.txt.gz": b"",
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requested.append(self.path)
        body = BODIES.get(self.path.removeprefix("/cut"))
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path.startswith("/cut") else body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def running():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requested = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def collected():
    """A broken download's socket ends with its test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running.requested.clear()
    return running


def remote(server, name: str, member: str | None = None, content: bytes = CONTENT) -> RemoteFile:
    port = server.server_address[1]
    return RemoteFile("set/table.txt", f"http://127.0.0.1:{port}{name}", hashlib.sha256(content).hexdigest(), member)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def one_line(error) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


def test_a_download_lands_in_the_folder(server, tmp_path, capsys):
    path = locate(remote(server, "/good.txt"), str(tmp_path))
    assert path == tmp_path / "set" / "table.txt"
    assert path.read_bytes() == CONTENT
    assert leftovers(tmp_path) == [path]
    assert server.requested == ["/good.txt"]
    locate(remote(server, "/good.txt"), str(tmp_path))
    assert server.requested == ["/good.txt"]  # the second time it is there
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("archive", ["/good.zip", "/deflated.zip"])
def test_a_member_of_an_archive_lands_in_the_folder(server, tmp_path, archive):
    path = locate(remote(server, archive, "inner/table.txt"), str(tmp_path))
    assert path.read_bytes() == CONTENT
    assert leftovers(tmp_path) == [path]


def test_a_gz_file_is_unpacked(server, tmp_path):
    path = locate(remote(server, "/good.txt.gz"), str(tmp_path))
    assert path == tmp_path / "set" / "table.txt"
    assert path.read_bytes() == CONTENT
    assert leftovers(tmp_path) == [path]


def test_a_gz_file_whose_place_ends_in_gz_stays_packed(server, tmp_path):
    packed = BODIES["/good.txt.gz"]
    file = replace(remote(server, "/good.txt.gz", content=packed), path="set/table.txt.gz")
    path = locate(file, str(tmp_path))
    assert path == tmp_path / "set" / "table.txt.gz"
    assert path.read_bytes() == packed
    assert leftovers(tmp_path) == [path]


@pytest.mark.parametrize(
    "name, member",
    [
        ("/tampered.txt", None),
        ("/short.txt", None),
        ("/cut/good.txt", None),
        ("/missing.txt", None),
        ("/cut/good.zip", "inner/table.txt"),
        ("/truncated.zip", "inner/table.txt"),
        ("/no-zip.zip", "inner/table.txt"),
        ("/other-member.zip", "inner/table.txt"),
        ("/tampered-member.zip", "inner/table.txt"),
        ("/flipped-stored.zip", "inner/table.txt"),
        ("/flipped-deflated.zip", "inner/table.txt"),
        ("/cut/good.txt.gz", None),
        ("/tampered.txt.gz", None),
        ("/truncated.txt.gz", None),
        ("/flipped.txt.gz", None),
        ("/checksum.txt.gz", None),
        ("/no-gzip.txt.gz", None),
        ("/empty.txt.gz", None),
    ],
)
def test_a_bad_download_is_an_error_and_leaves_nothing(server, collected, tmp_path, name, member):
    file = remote(server, name, member)
    with pytest.raises(DataError) as error:
        locate(file, str(tmp_path))
    assert file.url in one_line(error)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name, member", [("/tampered.txt", None), ("/flipped-stored.zip", "inner/table.txt")])
def test_after_a_bad_download_a_good_one_succeeds(server, tmp_path, name, member):
    with pytest.raises(DataError):
        locate(remote(server, name, member), str(tmp_path))
    assert locate(remote(server, "/good.txt"), str(tmp_path)).read_bytes() == CONTENT


def test_an_unreachable_address_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as closed:  # bound and not listening: refuses every connection
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/table.txt"
        file = RemoteFile("set/table.txt", url, hashlib.sha256(CONTENT).hexdigest())
        with pytest.raises(DataError) as error:
            locate(file, str(tmp_path))
        message = one_line(error)
        assert url in message and leftovers(tmp_path) == []
        place = Path(re.search(r"put the file at (\S+)", message).group(1))
        assert place == tmp_path / "set" / "table.txt"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(CONTENT)  # as told
        assert locate(file, str(tmp_path)).read_bytes() == CONTENT


def test_an_existing_file_is_used_without_a_download(server, tmp_path, capsys):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "table.txt").write_bytes(CONTENT)
    assert locate(remote(server, "/good.txt"), str(tmp_path)).read_bytes() == CONTENT
    assert server.requested == []
    assert capsys.readouterr().err == ""


def test_another_edition_is_used_with_a_note(server, tmp_path, capsys):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "table.txt").write_bytes(OTHER)
    path = locate(remote(server, "/good.txt"), str(tmp_path))
    assert path.read_bytes() == OTHER
    assert server.requested == []
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("note: ") and str(path) in err and err.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_an_error(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as error:
        locate(remote(server, "/good.txt"), str(tmp_path / "file"))
    assert str(tmp_path / "file") in one_line(error)


def test_a_full_disk_leaves_nothing(server, tmp_path, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(CONTENT[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DataError) as error:
        locate(remote(server, "/good.txt"), str(tmp_path))
    assert "No space left on device" in one_line(error)
    assert leftovers(tmp_path) == []


def test_the_flag_goes_before_the_environment_before_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.delenv("BSDL_DATA", raising=False)
    assert data_folder() == files.CACHE == Path(files.__file__).parent / "cache"
    monkeypatch.setenv("BSDL_DATA", str(tmp_path / "variable"))
    assert data_folder() == tmp_path / "variable"
    assert data_folder(str(tmp_path / "flag")) == tmp_path / "flag"
    assert locate(remote(server, "/good.txt")) == tmp_path / "variable" / "set" / "table.txt"
    path = locate(remote(server, "/good.txt"), str(tmp_path / "flag"))
    assert path == tmp_path / "flag" / "set" / "table.txt"
