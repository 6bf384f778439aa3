"""A page of another origin, open in the browser of a person who has the UI open, tries to run a command."""

import http.server
import sys
import threading

import pytest

from tests.browser.conftest import CHROMIUM, SWITCHES
from tests.deployments.conftest import recorded_answers
from tests.serving import RECORDED, Served, Server

pytestmark = pytest.mark.slow

EVIL, REBOUND = "evil.example", "rebound.example"
ATTACK = """
async ([api, deployment, steps]) => {
    const said = {};
    const json = {"Content-Type": "application/json"};
    const tries = {
        list: () => fetch(`${api}/deployments/filter`, {method: "POST", headers: json, body: "{}"}),
        read: () => fetch(`${api}/deployments/${deployment}`),
        patch: () => fetch(`${api}/deployments/${deployment}`,
            {method: "PATCH", headers: json, body: JSON.stringify({pull_steps: steps})}),
        start: () => fetch(`${api}/deployments/${deployment}/create_flow_run`,
            {method: "POST", headers: json, body: "{}"}),
        blind_start: () => fetch(`${api}/deployments/${deployment}/create_flow_run`,
            {method: "POST", mode: "no-cors", credentials: "include", body: new Blob(["{}"])}),
        blind_text: () => fetch(`${api}/deployments/${deployment}/create_flow_run`,
            {method: "POST", mode: "no-cors", headers: {"Content-Type": "text/plain"}, body: "{}"}),
        socket: () => new Promise((done, fail) => {
            const socket = new WebSocket(`${api.replace("http", "ws")}/events/in`);
            socket.onopen = () => done({status: "open"});
            socket.onerror = () => fail(new Error("closed"));
        }),
        frame: () => new Promise((done) => {
            const frame = document.createElement("iframe");
            frame.onload = () => {
                try { frame.contentWindow.localStorage; done({status: "read"}); }
                catch { done({status: "shut"}); }
            };
            frame.src = api.replace("/api", "/v2/dashboard");
            document.body.append(frame);
        }),
    };
    for (const [name, attempt] of Object.entries(tries)) {
        try {
            const answer = await attempt();
            said[name] = answer.status;
        } catch (error) {
            said[name] = "refused";
        }
    }
    return said;
}
"""


class Page(http.server.BaseHTTPRequestHandler):
    """An empty page, as the attacker's server gives it."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>Cats</title><body></body>")

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def attacker():
    """The port of a server whose pages are another origin's."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """A browser in which the attacker's names lead to this machine, as their name server can have it."""
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install -y chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright==1.65.2")
    rules = f"--host-resolver-rules=MAP {EVIL} 127.0.0.1,MAP {REBOUND} 127.0.0.1"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=[*SWITCHES, rules])
        yield browser
        browser.close()


def steps(mark):
    """What a deployment would do before its next run: leave a mark."""
    return [{"prefect.deployments.steps.run_shell_script": {"script": f"touch {mark}"}}]


def attack(page, page_url, api, deployment, mark):
    page.goto(page_url)
    return page.evaluate(ATTACK, [api, deployment, steps(mark)])


class Plain(Server):
    """Prefect's own server, as `prefect server start` starts it."""

    password = ""

    def command(self):
        return [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port)]

    def is_ready(self):
        return self.answers() and self.call("/health") is True

    def made(self, path, body):
        """The id of what was made; a server that has just begun may ask to try again."""
        return self.until(lambda: _made(self.call(path, body)), 60)["id"]


def _made(answer):
    return answer if isinstance(answer, dict) else None


def test_the_attack_is_one_where_nothing_stands_before_the_server(browser, attacker, tmp_path):
    plain, context = Plain(tmp_path), browser.new_context()
    try:
        flow = plain.made("/flows/", {"name": "flow"})
        deployment = plain.made("/deployments/", {"name": "one", "flow_id": flow})
        page_url, api = f"http://{EVIL}:{attacker}/", f"{plain.address}/api"
        said = attack(context.new_page(), page_url, api, deployment, tmp_path / "mark")
        assert (said["list"], said["patch"], said["start"], said["socket"]) == (200, 204, 201, "open")
        assert plain.call(f"/deployments/{deployment}")["pull_steps"] == steps(tmp_path / "mark")
        # The blind requests get through as well: three runs.
        assert len(plain.call("/flow_runs/filter", {})) >= 2
    finally:
        context.close()
        plain.stop()


@pytest.mark.parametrize("words", [(), ("--no-password",)], ids=["with a password", "without one"])
def test_a_page_of_another_origin_runs_nothing(browser, attacker, tmp_path, words):
    recorded_answers().to_csv(tmp_path / "answers.csv", index=False)
    (tmp_path / "recorded.toml").write_text(RECORDED)
    served, mark = Served(tmp_path, *words), tmp_path / "mark"
    context = browser.new_context()
    try:
        deployment, api = served.deployments["baseline"], f"{served.address}/api"
        before = served.call(f"/deployments/{deployment}")
        # The person is signed in, in the same browser.
        ours = context.new_page()
        ours.goto(served.link if not words else served.address)
        ours.get_by_text("calibrate").or_(ours.get_by_text("Dashboard")).first.wait_for()
        theirs = context.new_page()
        pages = {
            f"http://{EVIL}:{attacker}/": api,
            f"http://127.0.0.1:{attacker}/": api,
            f"http://localhost:{attacker}/": f"http://localhost:{served.port}/api",
        }
        for page_url, target in pages.items():
            said = attack(theirs, page_url, target, deployment, mark)
            assert {said[name] for name in ("list", "read", "patch", "start", "socket")} == {"refused"}, said
            assert said["frame"] == "shut"
            # A browser does not say how a blind request ended: the server does, below.
        # The attacker's name is made to lead to our server: to the browser that is one origin.
        for path in ("/v2/dashboard", "/api/health", "/api/admin/version", "/sign-in"):
            assert theirs.goto(f"http://{REBOUND}:{served.port}{path}").status == 421
        after = served.call(f"/deployments/{deployment}")
        same = set(before) - {"status", "last_polled", "updated"}  # which our own runner changes
        assert {name: after[name] for name in same} == {name: before[name] for name in same}
        assert served.call("/flow_runs/filter", {}) == []
        # The person themself can still do all that.
        state, _ = served.ended(served.started("baseline", file="recorded.toml"))
        assert state["name"] == "Completed", state["message"]
        assert len(served.call("/flow_runs/filter", {})) == 1
        assert not mark.exists()
    finally:
        context.close()
        served.stop()
