"""As much of the W&B backend as the real client needs, on 127.0.0.1, in a process of its own: a test can kill it, and start it again.

    python wandb_server.py PORT FOLDER        PORT 0: a free one; the first line printed is the URL

What the client sends is appended to FOLDER/log.jsonl, one line an event, so that a new server knows what the old one was told; uploaded
files are in FOLDER/files. FOLDER/mode says how to answer: ok, 500 (everything fails), 401 (the key has expired).
"""

import gzip
import json
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "planted0" * 5  # as long as a real one


@dataclass
class ServerRun:
    """What the server knows of a run. rows: by line number, so that a line sent again replaces itself, as at W&B."""

    bucket: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def history(self) -> list[dict[str, Any]]:
        assert sorted(self.rows) == list(range(len(self.rows))), "lines are missing"
        return [self.rows[line] for line in sorted(self.rows)]

    @property
    def config(self) -> dict[str, Any]:
        config = json.loads(self.bucket["config"])
        return {key: entry["value"] for key, entry in config.items() if key != "_wandb"}


class Server:
    """The test's side: starts, kills and restarts the process; reads what it was told."""

    def __init__(self, folder: Path):
        self.folder, self.port, self._process = folder, 0, None
        (folder / "files").mkdir(parents=True)
        self.mode("ok")

    def start(self) -> None:
        command = [sys.executable, __file__, str(self.port), str(self.folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.url = self._process.stdout.readline().strip()
        self.port = int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def mode(self, mode: str) -> None:
        (self.folder / "mode").write_text(mode)

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}

    def runs(self) -> dict[str, ServerRun]:
        """By wandb id."""
        return runs_told(self.folder)


def runs_told(folder: Path) -> dict[str, ServerRun]:
    """What the server in this folder was told of each run, by wandb id."""
    log = folder / "log.jsonl"
    found: dict[str, ServerRun] = {}
    for event in map(json.loads, log.read_text().splitlines() if log.exists() else ()):
        run = found.setdefault(event["run"], ServerRun())
        if "bucket" in event:
            run.bucket |= {key: value for key, value in event["bucket"].items() if value is not None}
        for name, sent in event.get("stream", {}).get("files", {}).items():
            lines = [json.loads(line) for line in sent["content"]]
            if name == "wandb-history.jsonl":
                run.rows |= dict(enumerate(lines, start=sent["offset"]))
            elif name == "wandb-summary.json" and lines:
                run.summary = lines[-1]
        if event.get("stream", {}).get("complete"):
            run.exit_code = event["stream"]["exitcode"]
        if "file" in event:
            run.files[event["file"]] = Path(event["path"])
    return found


class Backend(ThreadingHTTPServer):
    """The process itself."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, folder: Path):
        super().__init__(("127.0.0.1", port), Handler)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_address[1]}"
        self._log = open(folder / "log.jsonl", "ab", buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()

    def handle_error(self, *_: Any) -> None:
        """A client that was killed leaves broken connections."""

    def tell(self, run: str, **event: Any) -> None:
        with self._lock:
            self._log.write(json.dumps({"run": run, **event}).encode() + b"\n")

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        if path.startswith("/graphql"):
            query = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
            return self.graphql(operation[1] if operation else "", query.get("variables") or {})
        if path.endswith("/file_stream"):
            self.tell(path.split("/")[-2], stream=json.loads(body))
            return {"exitcode": 0, "limits": {}}
        if method == "PUT" and path.startswith("/storage/"):
            run, name = path.removeprefix("/storage/").split("/", 1)
            file = self.folder / "files" / run / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)
            self.tell(run, file=name, path=str(file))
        return {}

    def graphql(self, operation: str, v: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertBucket":
            name = v.get("name") or v["id"]
            self.tell(name, bucket=v)
            project = {"id": "p", "name": v.get("project") or "p", "entity": {"id": "e", "name": "lab"}}
            bucket = {"id": f"id-{name}", "name": name, "displayName": v.get("displayName"), "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}}
        if operation == "CreateRunFiles":
            files = [{"name": n, "uploadUrl": f"{self.url}/storage/{v['run']}/{n}"} for n in v["files"]]
            return {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}}
        if operation == "Viewer":
            return {"data": {"viewer": {"id": "u", "entity": "lab", "username": "lab", "teams": {"edges": []}}}}
        if operation == "RunResumeStatus":
            return {"data": {"model": None}}
        if operation == "RunStoppedStatus":
            return {"data": {"project": {"run": {"stopped": False}}}}
        if operation == "UpsertView2":
            self.tell("", view=v)
            return {"data": {"upsertView": {"view": {"id": "v", "name": v["name"]}, "inserted": True}}}
        if operation == "CreateCustomChart":
            self.tell("", chart=v)
            return {"data": {"createCustomChart": {"chart": {"id": "c"}}}}
        if operation in QUERIES:
            return {"data": QUERIES[operation](self, v)}
        return {"data": {}, "errors": [{"message": f"{operation} is unknown here"}]}


# What wandb's public API asks, to read back what was told.


def default_entity(server: Backend, v: dict[str, Any]) -> dict[str, Any]:
    return {"viewer": {"id": "u", "entity": "lab"}}


def all_runs(server: Backend, v: dict[str, Any]) -> dict[str, Any]:
    nodes = []
    for name, run in runs_told(server.folder).items():
        if run.bucket.get("project") != v["project"]:
            continue
        state = {None: "running", 0: "finished"}.get(run.exit_code, "failed")
        node = {
            "id": f"id-{name}",
            "name": name,
            "displayName": run.bucket.get("displayName"),
            "state": state,
            "projectId": "1",
        }
        node |= {
            "config": run.bucket.get("config"),
            "summaryMetrics": json.dumps(run.summary),
            "tags": [],
            "user": {"name": "lab", "username": "lab"},
        }
        nodes.append(
            node | {"historyLineCount": len(run.rows), "historyKeys": None, "group": run.bucket.get("groupName")}
        )
    edges = [{"node": node, "cursor": node["id"]} for node in nodes]
    page = {"endCursor": None, "hasNextPage": False}
    return {
        "project": {
            "internalId": "1",
            "runCount": len(nodes),
            "readOnly": False,
            "runs": {"edges": edges, "pageInfo": page},
        }
    }


def history_keys(server: Backend, v: dict[str, Any]) -> dict[str, Any]:
    history = runs_told(server.folder)[v["name"]].history
    return {"project": {"run": {"historyKeys": {"lastStep": history[-1]["_step"] if history else -1}}}}


def parquet_history(server: Backend, v: dict[str, Any]) -> dict[str, Any]:
    """Nothing has been exported yet: all rows are live."""
    return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}}


def history_page(server: Backend, v: dict[str, Any]) -> dict[str, Any]:
    with open(server.folder / "asked.txt", "a") as asked:
        asked.write(f"{v['run']}\n")
    rows = runs_told(server.folder)[v["run"]].history
    return {
        "project": {
            "run": {"history": [json.dumps(row) for row in rows if v["minStep"] <= row["_step"] < v["maxStep"]]}
        }
    }


def run_files(server: Backend, v: dict[str, Any]) -> dict[str, Any]:
    name, told = v["name"], runs_told(server.folder)[v["name"]].files
    wanted = [file for file in told if not v.get("fileNames") or file in v["fileNames"]]
    nodes = [{"id": file, "name": file, "url": f"{server.url}/storage/{name}/{file}", "directUrl": f"{server.url}/storage/{name}/{file}",
              "sizeBytes": str(told[file].stat().st_size), "mimetype": "", "updatedAt": None, "md5": ""} for file in wanted]  # fmt: skip
    edges = [{"node": node, "cursor": node["id"]} for node in nodes]
    files = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
    return {"project": {"internalId": "1", "run": {"fileCount": len(nodes), "files": files}}}


QUERIES = {
    "GetDefaultEntity": default_entity,
    "Runs": all_runs,
    "RunHistoryKeys": history_keys,
    "RunParquetHistory": parquet_history,
    "HistoryPage": history_page,
    "RunFiles": run_files,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Backend

    def log_message(self, *_: Any) -> None:
        pass

    def handle_request(self) -> None:
        body = self._body()
        mode = (self.server.folder / "mode").read_text()
        stored = self.server.folder / "files" / self.path.removeprefix("/storage/")
        if mode == "ok" and self.command == "GET" and stored.is_file():
            content = stored.read_bytes()
        else:
            answer = self.server.answer(self.command, self.path, body) if mode == "ok" else {"error": mode}
            content = json.dumps(answer).encode()
        self.send_response(200 if mode == "ok" else int(mode))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = handle_request

    def _body(self) -> bytes:
        body = b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body


if __name__ == "__main__":
    backend = Backend(int(sys.argv[1]), Path(sys.argv[2]))
    print(backend.url, flush=True)
    backend.serve_forever()
