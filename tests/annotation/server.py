"""A real Label Studio: installed in an environment of its own, started here, and spoken to as a browser does.

``python -m tests.annotation.server FOLDER`` starts one to look at, with FOLDER as its local files.
"""

import contextlib
import http.cookiejar
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import venv
from pathlib import Path

VERSION = "1.23.2"
USER, PASSWORD = "ann@example.org", "correct-horse-12"
QUIET = {"COLLECT_ANALYTICS": "False", "LATEST_VERSION_CHECK": "False", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": ""}


class Unavailable(Exception):
    """Why there is no server."""


def executable():
    """``BAAL_JAX_LABEL_STUDIO`` names one; otherwise it is installed once, into the user's folder of caches."""
    if named := os.environ.get("BAAL_JAX_LABEL_STUDIO"):
        return Path(named)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "baal_jax" / f"label-studio-{VERSION}"
    program = home / "bin" / "label-studio"
    if not (home / "complete").exists():
        venv.create(home, with_pip=True, clear=True)
        install = [home / "bin" / "python", "-m", "pip", "install", "-q", f"label-studio=={VERSION}"]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"label-studio=={VERSION} cannot be installed: {done.stderr.strip()[-300:]}")
        (home / "complete").touch()
    return program


class Session:
    """Somebody who is logged in."""

    def __init__(self, address, email, password, *, is_new=False):
        """Signs up where the account is new."""
        self.address, self.cookies = address, http.cookiejar.CookieJar()
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))
        place = "/user/signup/" if is_new else "/user/login/"
        self.call("GET", place)
        self.call("POST", place, urllib.parse.urlencode({"email": email, "password": password}).encode())
        assert self.call("GET", "/api/current-user/whoami")["email"] == email

    def call(self, method, path, body=None):
        """The answer, decoded if it is JSON."""
        token = next((cookie.value for cookie in self.cookies if cookie.name == "csrftoken"), "")
        headers = {"X-CSRFToken": token, "Referer": self.address}
        if body is not None and not isinstance(body, bytes):
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        try:
            with self.opener.open(request, timeout=60) as answer:
                content, kind = answer.read(), answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read()[:500]}") from error
        return json.loads(content) if kind == "application/json" and content else content

    def project(self, interface):
        """A new project with this labelling interface."""
        return self.call("POST", "/api/projects/", {"title": "trial", "label_config": interface})["id"]

    def tasks(self, project):
        """``baal_index`` → id of its newest task."""
        found = self.call("GET", f"/api/tasks/?project={project}&page_size=1000")["tasks"]
        return {task["data"]["baal_index"]: task["id"] for task in sorted(found, key=lambda task: task["id"])}

    def annotate(self, task, result, **fields):
        """What is said of a task."""
        return self.call("POST", f"/api/tasks/{task}/annotations/", {"result": result, **fields})

    def export(self, project, kind="JSON"):
        """All tasks as the tool exports them, the bytes of a file."""
        return self.call("GET", f"/api/projects/{project}/export?exportType={kind}&download_all_tasks=true")


@contextlib.contextmanager
def running(home, files):
    """The address of a server, whose data are in ``home`` and whose local files in ``files``."""
    program = executable()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"LABEL_STUDIO_BASE_DATA_DIR": str(home), "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true"}
    settings |= {"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(files), **QUIET}
    command = [program, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    command += ["--username", USER, "--password", PASSWORD]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | settings
    Path(home).mkdir(parents=True, exist_ok=True)
    log = Path(home) / "server.log"
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + 240
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
                if process.poll() is not None or time.monotonic() > end:
                    raise Unavailable(f"Label Studio does not start: {log.read_text(errors='replace')[-500:]}")
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()


if __name__ == "__main__":
    with running(Path(sys.argv[1]) / ".label-studio", sys.argv[1]) as place:
        print(f"{place}, {USER}, {PASSWORD}; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(1e6)
