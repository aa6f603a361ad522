"""A headless chromium with one tab, driven as a person drives it: keys, and what is then to be seen.

Speaks the DevTools protocol through two pipes; needs Python and `chromium`, nothing else. It waits
for conditions, each with a time limit, never for a fixed time.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from serving import Failed, claim

KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38,
        "ArrowRight": 39, "ArrowDown": 40, "a": 65}
CONTROL, SHIFT = 2, 8
# How long a condition may take: a small model on a loaded machine answers in seconds.
SHORT_S, LONG_S = 15, 120


class Browser:
    """A chromium with one tab, driven through --remote-debugging-pipe: JSON, then a zero byte."""

    def __init__(self):
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        if not program:
            sys.exit("there is no chromium: apt-get install -y chromium")
        self.profile = tempfile.TemporaryDirectory(prefix="pleach-browser-")
        # High numbers, so that giving the browser its 3 and 4 cannot close one of ours.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (*os.pipe(), *os.pipe())]
        theirs_in, self.out, self.into, theirs_out = ends
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                   "--disable-dev-shm-usage", "--disable-background-networking",
                   "--disable-extensions", "--hide-scrollbars", "--mute-audio",
                   f"--user-data-dir={self.profile.name}", "--remote-debugging-pipe", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *command],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self.number, self.unread, self.events, self.session = 0, b"", [], None
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        """Calls a method and waits for its result; events that come meanwhile are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        limit = time.monotonic() + 60
        while True:
            answer = self.receive(limit - time.monotonic())
            claim(answer is not None, f"the browser did not answer {method} in 60 s")
            if answer.get("id") == self.number:
                claim("error" not in answer, f"{method}: {answer.get('error')}")
                return answer["result"]

    def receive(self, wait_s):
        """The next message, or None once the time is over; events are kept as they pass."""
        limit = time.monotonic() + wait_s
        while b"\0" not in self.unread:
            left = limit - time.monotonic()
            if left < 0 or not select.select([self.into], [], [], left)[0]:
                return None
            data = os.read(self.into, 1 << 20)
            claim(data, "the browser has ended")
            self.unread += data
        raw, _, self.unread = self.unread.partition(b"\0")
        message = json.loads(raw)
        if "method" in message:
            self.events.append(message)
        return message

    def evaluate(self, script):
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True,
                           awaitPromise=True)
        claim("exceptionDetails" not in result, f"{script}: {result.get('exceptionDetails')}")
        return result["result"].get("value")

    def wait(self, script, words, limit_s=SHORT_S):
        """Waits until a script's value is truthy."""
        limit = time.monotonic() + limit_s
        while True:
            if self.evaluate(f"Boolean({script})"):
                return
            claim(time.monotonic() < limit, f"{words} (waited {limit_s} s)")
            self.receive(0.05)

    def press(self, key, modifiers=0):
        code = KEYS[key]
        text = {"text": "\r"} if key == "Enter" else {}
        common = {"key": key, "code": "KeyA" if key == "a" else key, "modifiers": modifiers,
                  "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **common,
                  **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type_over(self, text):
        """Types over what is in the field that has the focus."""
        self.evaluate("document.activeElement.select()")
        self.send("Input.insertText", text=text)

    def tab_to(self, what, presses=60):
        """Presses Tab until an element that fits a selector has the focus, as a person would."""
        for _ in range(presses):
            if self.evaluate(f"document.activeElement.matches({json.dumps(what)})"):
                return
            self.press("Tab")
        raise Failed(f"{presses} presses of Tab do not lead to {what}")

    def show_as(self, width, height, scheme="light", scale=1):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=scale, mobile=False)
        self.send("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])

    def save(self, path, most=6000):
        """The page as a picture, from the top on."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], most),
                "scale": 1}
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
        print(f"saved {path}")

    def leave(self):
        """Closes the page, and forgets what happened there."""
        self.send("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'", "the page stays")
        self.events.clear()

    def end(self):
        try:
            self.session = None
            self.send("Browser.close")
            self.process.wait(10)
        except (Failed, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        try:
            self.profile.cleanup()
        except OSError:
            pass  # A helper process of the browser may still write there.
