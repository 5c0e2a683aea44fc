"""An index behind HTTP: what it answers is what the index finds, whatever is asked and whenever."""

import asyncio
import contextlib
import dataclasses
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import threading
import time
import zipfile

import commands
import numpy as np
import pytest
from brute_force import draw

pytest.importorskip("starlette", reason="the service is an extra: serve")
pytest.importorskip("uvicorn", reason="the service is an extra: serve")

from mrl_jax.errors import UsageError
from mrl_jax.search import Index, Schedule
from mrl_jax.search.__main__ import main
from mrl_jax.search.index import files
from mrl_jax.search.plan import Asked, Plan
from mrl_jax.search.service import app, server

N, D, K = 200, 8, 5
JSON = {"Content-Type": "application/json"}
NPY, NPZ = {"Content-Type": "application/x-npy"}, {"Content-Type": "application/x-npz"}
AS_NPZ = {"Accept": "application/x-npz"}
IDS = {"int64": 3 * np.arange(N) + 1, "texts": np.array([f"foto/ö {n}" for n in range(N)], object)}
PLAN = Plan(Schedule.parse(f"4:60 > {D}"), code="int8")


class Client:
    """One connection; gives status and what the answer holds."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, path, body, headers=JSON, method="POST"):
        if headers.get("Content-Type") == JSON["Content-Type"] and not isinstance(body, bytes):
            body = json.dumps(body)
        self.connection.request(method, path, body, headers)
        self.reply = self.connection.getresponse()
        content = self.reply.read()
        if self.reply.headers["Content-Type"] == "application/x-npz":
            with np.load(io.BytesIO(content)) as arrays:
                return self.reply.status, dict(arrays)
        if self.reply.headers["Content-Type"] == "application/json":
            return self.reply.status, json.loads(content)
        return self.reply.status, content.decode()

    def tell(self, path):
        return self.ask(path, None, {}, "GET")


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@contextlib.contextmanager
def serving(folder, writable=False, **limits):
    """A service in a thread, and a client of it."""
    service = app.Service(Index.open(folder), app.Limits(**limits), writable)
    with server.listen("127.0.0.1", 0) as listening:
        port, serves = listening.getsockname()[1], server.made(service)
        thread = threading.Thread(target=lambda: asyncio.run(serves.serve([listening])))
        thread.start()
        try:
            client = Client(port)
            client.service = service
            yield client
        finally:
            client.connection.close()
            serves.should_exit = True
            thread.join()
            service.close()


@pytest.fixture(scope="module")
def z_nd():
    return draw(N, D)


@pytest.fixture(scope="module", params=["int64", "texts"])
def folder(request, tmp_path_factory, z_nd):
    folder = tmp_path_factory.mktemp("served") / "index"
    Index.build(folder, z_nd, IDS[request.param], plan=PLAN)
    return folder


@pytest.fixture
def own(tmp_path, z_nd):
    """The folder of an index that a test may change."""
    Index.build(tmp_path / "index", z_nd, IDS["int64"], plan=PLAN)
    return tmp_path / "index"


def test_every_form_of_asking_gives_what_the_index_finds(folder, z_nd):
    index, queries_bd = Index.open(folder), draw(7, D, seed=1)
    ids_bk, scores_bk = index.search(queries_bd, K)
    scores = scores_bk.astype(float).tolist()
    with serving(folder) as client:
        asked = {"vectors": queries_bd.tolist(), "k": K}
        for body, headers, path in (
            (asked, JSON, "/search"),
            (npy(queries_bd), NPY, f"/search?k={K}"),
            (npy(np.asfortranarray(queries_bd.astype(">f8"))), NPY, f"/search?k={K}"),
            (npz(vectors=queries_bd, k=K), NPZ, "/search"),
        ):
            status, found = client.ask(path, body, headers)
            assert (status, found["ids"]) == (200, ids_bk.tolist())
            assert np.float32(found["scores"]).tolist() == scores
            assert found["version"] == 1
            status, found = client.ask(path, body, headers | AS_NPZ)
            assert status == 200
            np.testing.assert_array_equal(found["ids"], ids_bk.astype(found["ids"].dtype))
            assert found["ids"].dtype.kind == ("i" if index.kind == "int64" else "U")
            assert found["scores"].dtype == np.float32
            assert found["scores"].tolist() == scores
        _, found = client.ask("/search", {"vectors": queries_bd[0].tolist(), "k": K})
        assert found["ids"] == ids_bk[0].tolist()
        _, found = client.ask("/search", npy(queries_bd[0]), NPY)
        assert found["ids"] == index.search(queries_bd[0], 10)[0].tolist()
        _, found = client.ask("/search", {"vectors": [1] + [0] * (D - 1)})
        assert len(found["ids"]) == 10

        allow = index.ids[::60]  # four of them
        ids_bk, scores_bk = index.search(queries_bd, K, allow=allow)
        texts = allow.astype(str) if index.kind == "texts" else allow
        for body, headers in (
            (asked | {"allow": allow.tolist()}, JSON),
            (npz(vectors=queries_bd, k=K, allow=texts), NPZ),
        ):
            _, found = client.ask("/search", body, headers)
            assert found["ids"] == ids_bk[:, :4].tolist()
            assert np.float32(found["scores"]).tolist() == scores_bk[:, :4].tolist()
        _, found = client.ask("/search", asked | {"allow": []})
        assert found["ids"] == found["scores"] == [[]] * 7
        _, found = client.ask("/search", npz(vectors=queries_bd, k=K, allow=texts), NPZ | AS_NPZ)
        np.testing.assert_array_equal(found["scores"], scores_bk)

        status, found = client.ask("/get", {"ids": index.ids[[5, 3, 5]].tolist()})
        assert status == 200
        np.testing.assert_array_equal(np.float32(found["vectors"]), z_nd[[5, 3, 5]])
        _, found = client.ask("/get", {"ids": index.ids[[5, 3]].tolist()}, JSON | AS_NPZ)
        np.testing.assert_array_equal(found["vectors"], z_nd[[5, 3]])


def test_what_cannot_be_asked(own):
    whole = {"vectors": [0.5] * D}
    big = np.zeros(D, "<f4")
    lies = npy(big).replace(b"(8,), ", b"(1 << 60,), "[:6])
    nothing = npy(np.empty(1, "<U1")).replace(b"<U1", b"<U0").replace(b"(1,)", b"(9,)")[:-4]
    pickled = io.BytesIO()
    np.save(pickled, np.array([print, {}], object), allow_pickle=True)
    cases = [
        ("/search", b"{", JSON, 400, "the body is no JSON: "),
        ("/search", b'{"vectors": [NaN, 1]}', JSON, 400, "the body is no JSON: "),
        ("/search", b"[1]", JSON, 400, "the body must be a JSON object"),
        ("/search", b"\xff", JSON, 400, "the body is no JSON: "),
        ("/search", b"[" * 9999, JSON, 400, "the body is no JSON: "),
        ("/search", {}, JSON, 400, "vectors is missing"),
        ("/search", whole | {"K": 3}, JSON, 400, "there is no 'K'; legal: vectors, k, allow"),
        ("/search?K=3", npy(big), NPY, 400, "there is no 'K'; legal: vectors, k, allow"),
        ("/search?k=x", npy(big), NPY, 400, "k must be a whole number from 1 to 50, got 'x'"),
        *(
            ("/search", whole | {"k": k}, JSON, 400, "k must be a whole number from 1 to 50, got")
            for k in (0, -1, 51, 2.0, True, None, [3], {}, 10**30)
        ),
        *(
            ("/search", {"vectors": given}, JSON, 400, "vectors must be one or several of 8 float")
            for given in ("x", ["1"] * D, [True] * D, {"a": 1}, [[1], [1, 2]], [[[1.0] * D]], 3.0)
        ),
        ("/search", {"vectors": [0.5] * (D - 1)}, JSON, 400, "vectors must have 8 dims, got 7"),
        ("/search", {"vectors": [0.5] * (D + 1)}, JSON, 400, "vectors must have 8 dims, got 9"),
        ("/search", {"vectors": []}, JSON, 400, "vectors must have 8 dims, got 0"),
        ("/search", {"vectors": [1e300] * D}, JSON, 400, "a query holds NaN or infinity"),
        ("/search", npy(np.full(D, np.nan)), NPY, 400, "a query holds NaN or infinity"),
        ("/search", npy(np.arange(D)), NPY, 400, "floating point numbers, got int64 of shape (8,)"),
        ("/search", npy(big)[:-1], NPY, 400, "the body is no whole .npy file"),
        ("/search", npy(big) + b"x", NPY, 400, "the body is no whole .npy file"),
        ("/search", lies, NPY, 400, "the body is no whole .npy file"),
        ("/search", nothing, NPY, 400, "the body is no whole .npy file"),
        ("/search", pickled.getvalue(), NPY, 400, "the body is no whole .npy file"),
        ("/search", npz(vectors=big)[:-30], NPZ, 400, "the body is no whole .npz file"),
        ("/search", npz(vectors=np.array([{}])), NPZ, 400, "the body is no whole .npz file"),
        ("/search", b"", NPY, 400, "the body is no whole .npy file"),
        ("/search", npy(big), {}, 415, "Content-Type must be application/json, application/x-npy"),
        ("/search", b"x", {"Content-Type": "text/csv"}, 415, "application/x-npz; got 'text/csv'"),
        ("/search", whole | {"allow": ["a"]}, JSON, 400, "ids must be int64, got <U1"),
        ("/search", whole | {"allow": [1.5]}, JSON, 400, "ids must be int64, got float64"),
        ("/search", whole | {"allow": [True] * N}, JSON, 400, "allow must be ids: whole numbers"),
        ("/search", npz(vectors=big, allow=np.ones(N, bool)), NPZ, 400, "allow must be ids"),
        ("/get", {"ids": [1, 2]}, JSON, 404, "id 2 is not in the index"),
        ("/get", {}, JSON, 400, "ids is missing"),
        ("/get", {"ids": [[1]]}, JSON, 400, "ids must be ids"),
        ("/add", whole | {"ids": [2]}, JSON, 403, "cannot be changed here: serve it with --writab"),
        ("/delete", {"ids": [1]}, JSON, 403, "the index cannot be changed here"),
        ("/nothing", {}, JSON, 404, "there is no such path; there are /search, /get, /add"),
    ]
    with serving(own, k=50) as client:
        for path, body, headers, status, message in cases:
            found = client.ask(path, body, headers)
            assert found[0] == status, (path, body, found)
            assert message in found[1]["error"]
            assert list(found[1]) == ["error"]
            assert "\n" not in found[1]["error"]
            assert str(own) not in found[1]["error"]
        status, found = client.tell("/search")
        assert (status, found) == (405, {"error": "/search takes POST"})
        assert client.reply.headers["Allow"] == "POST"
        assert client.ask("/search", whole)[0] == 200  # it is as well as before


def test_too_much_is_refused_before_it_is_read(own, z_nd):
    with serving(own, body=4000, batch=6) as client:
        assert client.ask("/search", npy(z_nd[:6]), NPY)[0] == 200
        error = "there are 7 vectors, 6 at most"
        assert client.ask("/search", npy(z_nd[:7]), NPY) == (413, {"error": error})
        error = {"error": "there are 7 ids, 6 at most"}
        assert client.ask("/get", {"ids": [1] * 7}) == (413, error)
        bomb = io.BytesIO()
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as members:
            members.writestr("vectors.npy", npy(np.zeros((1000, D))))
        error = {"error": "the body unpacks to more than 4,000 bytes"}
        assert client.ask("/search", bomb.getvalue(), NPZ) == (413, error)
        # Without a length it is cut off as it comes.
        for body in (npy(z_nd), iter([npy(z_nd)[:3000]] * 2)):
            found = client.ask("/search", body, NPY)
            assert found == (413, {"error": "the body has more than 4,000 bytes"})
            assert client.reply.headers["Connection"] == "close"
        # What says that it is large is not waited for.
        client.connection.putrequest("POST", "/search")
        client.connection.putheader("Content-Length", "100000000000")
        client.connection.endheaders()
        assert client.connection.getresponse().status == 413


def test_changes(own, z_nd):
    with serving(own, writable=True) as client:
        new = 2 * z_nd[:2]
        body = {"ids": [1000, 1001], "vectors": new.tolist()}
        assert client.ask("/add", body) == (200, {"rows": N + 2, "version": 2})
        index = Index.open(own)
        np.testing.assert_array_equal(index.get([1000, 1001]), new)
        assert client.ask("/add", body) == (409, {"error": "id 1000 is in the index already"})
        body = npz(ids=np.array([1000, 7777]), vectors=3 * new)
        assert client.ask("/upsert", body, NPZ) == (200, {"rows": N + 3, "version": 3})
        found = client.ask("/get", {"ids": 7777})[1]["vectors"]
        np.testing.assert_array_equal(np.float32(found), 3 * new[1:])
        assert client.ask("/delete", {"ids": [1000, 1]}) == (200, {"rows": N + 1, "version": 4})
        error = {"error": "id 1 is not in the index"}
        assert client.ask("/delete", {"ids": [4, 1]}) == (404, error)
        index.refresh()
        assert (1000 in index, 4 in index, index.version) == (False, True, 4)
        for body, message in (
            ({"ids": ["a"], "vectors": [1.0] * D}, "the index has int64 for ids, got texts"),
            ({"ids": [-1], "vectors": [1.0] * D}, "no vector can have the id -1"),
            ({"ids": [5, 5], "vectors": [[1.0] * D] * 2}, "rows 0 and 1 have the same id, 5"),
            ({"ids": [5, 6], "vectors": [1.0] * D}, "there are 2 ids for 1 vectors"),
            ({"ids": [5], "vectors": [1e300] * D}, "row 0 holds NaN or infinity"),
            ({"ids": [5], "vectors": [1.0] * 4}, "vectors must have 8 dims, got 4"),
            ({"ids": [5], "vectors": [1.0] * D, "attributes": {"a": [1]}}, "have no attributes"),
            ({"vectors": [1.0] * D}, "ids is missing"),
        ):
            for path in ("/add", "/upsert"):
                status, found = client.ask(path, body)
                assert (status, message in found["error"]) == (400, True), found
        with files.writing(own):  # as another command does
            error = {"error": "another command changes the index: try again"}
            assert client.ask("/delete", {"ids": [4]}) == (503, error)
            assert client.reply.headers["Retry-After"] == "1"
        assert client.ask("/delete", {"ids": [4]})[0] == 200


def test_attributes_come_with_new_vectors(tmp_path, z_nd):
    import pyarrow.compute as pc

    year = np.arange(N) % 30 + 1990
    Index.build(tmp_path / "index", z_nd, plan=PLAN, attributes={"year": year})
    with serving(tmp_path / "index", writable=True) as client:
        new = {"ids": [500], "vectors": z_nd[0].tolist()}
        status, found = client.ask("/add", new)
        assert (status, found["error"][:40]) == (400, "vectors of this index have attributes: g")
        assert client.ask("/add", new | {"attributes": {"year": [2033]}})[0] == 200
        assert client.ask("/add", new | {"ids": [9], "attributes": {"year": ["x"]}})[0] == 400
    found = Index.open(tmp_path / "index").search(z_nd[0], 2, allow=pc.field("year") > 2030)
    assert found[0].tolist() == [500, -1]


def test_changes_of_others_are_seen_and_nothing_is_wrong_meanwhile(own, z_nd):
    """Threads ask without end while another handle changes the index, and it is looked at."""
    queries_bd = draw(4, D, seed=2)
    other, wanted, answers, over = Index.open(own), {}, [], threading.Event()
    wanted[1] = other.search(queries_bd, K)[0].tolist()

    def ask(port):
        mine = Client(port)
        while not over.is_set():
            answers.append(mine.ask("/search", {"vectors": queries_bd.tolist(), "k": K}))
        mine.connection.close()

    with serving(own) as client:
        port = client.connection.port
        threads = [threading.Thread(target=ask, args=(port,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for n in range(12):
            if n % 4 == 3:
                other.compact()
            elif n % 2:
                other.delete(other.search(queries_bd[n % 4], 1)[0])
            else:
                other.upsert(queries_bd[[n % 4]] * 2, [2000 + n])
            wanted[other.version] = other.search(queries_bd, K)[0].tolist()
            state = {"rows": len(other), "version": other.version}
            assert client.ask("/reload", b"") == (200, state)
        over.set()
        for thread in threads:
            thread.join()
        text = client.tell("/metrics")[1]
        assert f"mrl_jax_search_queries_total {4.0 * len(answers)}" in text
        assert "mrl_jax_search_reloads_total 12.0" in text
        assert f"mrl_jax_search_rows {float(len(other))}" in text
        assert f"mrl_jax_search_version {float(other.version)}" in text
    assert len({found["version"] for _, found in answers}) > 3
    for status, found in answers:
        assert (status, found["ids"]) == (200, wanted[found["version"]])


def test_queries_that_are_unlike_those_that_were_planned_with(tmp_path):
    asked = Asked.of(np.linspace(0.9, 0.95, 100), K, 0.9)
    plan = dataclasses.replace(PLAN, asked=asked)
    Index.build(tmp_path / "index", draw(N, D), plan=plan)
    with serving(tmp_path / "index") as client:
        client.service.warm_up()
        assert "mrl_jax_search_unlike 0.0" in client.tell("/metrics")[1]
        assert client.ask("/search", {"vectors": draw(256, D, seed=5).tolist()})[0] == 200
        assert "mrl_jax_search_unlike 1.0" in client.tell("/metrics")[1]
        # Those by which it warmed up are not among them.
        assert client.service._index.unlike.queries == 256


def test_files_that_are_damaged_or_gone(own, capfd):
    other = Index.open(own)
    with serving(own, writable=True) as client:
        ask = {"vectors": [1.0] * D}
        (own / "manifest.json").rename(own / "kept")
        reply = (503, {"error": "the index on disk cannot be read: its log says why"})
        assert client.ask("/reload", b"") == reply
        assert client.ask("/reload", b"") == reply
        assert client.ask("/search", ask)[0] == 200  # what is open stays
        status, found = client.tell("/health")
        assert (status, found["status"]) == (200, "the index on disk cannot be read")
        (own / "kept").rename(own / "manifest.json")
        other.delete([1])
        assert client.ask("/reload", b"") == (200, {"rows": N - 1, "version": 2})
        assert client.tell("/health")[1] == {
            "status": "ok", "rows": N - 1, "version": 2, "dims": D, "metric": "cosine",
            "id_kind": "int64", "writable": True,
        }  # fmt: skip
        assert "failed_reloads_total 2.0" in client.tell("/metrics")[1]
    printed = capfd.readouterr().err
    assert printed.count("cannot see what is on disk") == 1


def test_a_damaged_file_is_said_in_the_log_alone(tmp_path, capfd):
    Index.build(tmp_path / "index", draw(6000, D), plan=PLAN)
    with serving(tmp_path / "index") as client:
        (path,) = tmp_path.glob("index/segment-*/vectors.npy")
        with path.open("r+b") as file:
            file.seek(4 * D * 3000)
            file.write(b"damaged" * 9000)
        reply = (500, {"error": "the index cannot be read or written: its log says why"})
        assert client.ask("/search", {"vectors": draw(50, D, seed=3).tolist(), "k": 50}) == reply
    assert f"error: {path} is damaged" in capfd.readouterr().err


def test_an_error_of_ours_is_no_traceback_for_who_asks(own, monkeypatch, capfd):
    def fails(*_, **__):
        raise RuntimeError("secret")

    with serving(own) as client:
        monkeypatch.setattr(client.service._index, "allowing", fails)
        reply = client.ask("/search", {"vectors": [1.0] * D})
        assert reply == (500, {"error": "this is an error of the service: its log says why"})
        text = client.tell("/metrics")[1]
    assert 'requests_total{path="/search",status="500"} 1.0' in text
    assert "RuntimeError: secret" in capfd.readouterr().err


def test_who_comes_too_often_or_too_slowly(own, monkeypatch):
    free = threading.Event()

    def slow(allow):
        free.wait(20)
        return found

    with serving(own, seconds=0.2) as client:
        found = client.service._index.allowing(None)
        monkeypatch.setattr(client.service._index, "allowing", slow)
        reply = (503, {"error": "it took longer than 0.2 s"})
        assert client.ask("/search", {"vectors": [1.0] * D}) == reply
        free.set()
        assert client.ask("/search", {"vectors": [1.0] * D})[0] == 200
        with socket.create_connection(("127.0.0.1", client.connection.port)) as slow_one:
            slow_one.sendall(b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            assert slow_one.recv(99).startswith(b"HTTP/1.1 408 ")
        monkeypatch.setattr(app, "_WAITING", 0)
        reply = (503, {"error": "too many requests at a time: try again"})
        assert client.ask("/search", {"vectors": [1.0] * D}) == reply


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_what_was_asked_is_answered(own, number, monkeypatch):
    monkeypatch.setattr(server, "REFRESH_S", 0.02)
    service = app.Service(Index.open(own), app.Limits(), True)
    allowing, begun, said = service._index.allowing, threading.Event(), {}

    def slowly(allow):
        begun.set()
        time.sleep(0.4)
        return allowing(allow)

    def talk(port):
        client, other = Client(port), Client(port)
        said["before"] = client.tell("/health")[1]["version"]
        Index.open(own).delete([1])
        while client.tell("/health")[1]["version"] == 1:  # it looks by itself
            time.sleep(0.01)
        other.tell("/health")  # a connection that stays open, without a request
        monkeypatch.setattr(service._index, "allowing", slowly)

        def stop():
            begun.wait(20)
            os.kill(os.getpid(), number)

        stopping = threading.Thread(target=stop)
        stopping.start()
        said["answer"] = client.ask("/search", {"vectors": [1.0] * D, "k": 3})
        stopping.join()
        for one in (client, other):
            one.connection.close()

    with server.listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        talking = threading.Thread(target=talk, args=(port,))
        talking.start()
        ended = pytest.raises(KeyboardInterrupt) if number == signal.SIGINT else None
        with ended or contextlib.nullcontext():
            server.run(service, listening)
        talking.join()
    status, found = said["answer"]
    assert (said["before"], status, found["version"], len(found["ids"])) == (1, 200, 2, 3)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_where_it_listens(own):
    for host, public in (("127.0.0.1", False), ("0.0.0.0", True)):
        with server.listen(host, 0) as listening:
            assert server.is_public(listening) == public
            # Otherwise asyncio leaves Nagle's algorithm on, and answers take 40 ms.
            assert listening.proto == socket.IPPROTO_TCP
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        for words, message in (
            ((own, "--port", port), f"cannot listen on 127.0.0.1, port {port}: Address already"),
            ((own, "--port", 70000), "--port must be 0 to 65535, got 70000"),
            ((own, "--host", "no.such.invalid"), "cannot listen on no.such.invalid, port 8000: "),
            ((own, "--host", "a" * 99), "cannot listen on aaaaa"),
            ((own, "--max_k", 0), "--max_k must be above 0, got 0"),
            ((own, "--timeout", "nan"), "--timeout must be above 0, got nan"),
            ((own, "--max_body", "much"), "'much' is no size such as 2GB"),
        ):
            with pytest.raises(UsageError, match=message):
                main(["serve", *map(str, words)])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command(own, number):
    argv = commands.command("mrl_jax.search", "serve", own, "--port", 0, "--host", "0.0.0.0")
    process = subprocess.Popen(
        argv,
        cwd=commands.ROOT,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    warning, line = process.stdout.readline(), process.stdout.readline()
    assert warning.startswith("warning: all who reach 0.0.0.0 can read this index: there is no")
    assert line.startswith(f"200 vectors of {D} dims: http://0.0.0.0:")
    client = Client(int(line.rpartition(":")[2]))
    assert client.ask("/search", {"vectors": [1.0] * D})[0] == 200
    Index.open(own).delete([1])
    process.send_signal(signal.SIGHUP)
    while client.tell("/health")[1]["version"] == 1:
        time.sleep(0.01)
    client.connection.close()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    code, said = (0, "") if number == signal.SIGTERM else (130, "error: interrupted\n")
    assert (process.returncode, out, err) == (code, "", said)
