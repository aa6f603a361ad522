"""What a person sees and does on the page of a server at work."""

import json
from urllib.parse import urlsplit

from browser import CONTROL, LONG_S
from serving import Failed, claim, node_route


def check_loads(browser, url, key):
    browser.show_as(1280, 900)
    browser.send("Page.navigate", url=url)
    if key:
        browser.wait("document.activeElement?.id === 'key-field'", "no field for the key appears")
        browser.send("Input.insertText", text=key)
        browser.press("Enter")
    browser.wait("document.getElementById('connection')?.dataset.state === 'live'",
                 "the page does not reach the server")
    browser.wait("document.querySelectorAll('#tree [role=treeitem]').length > 1",
                 "the tree does not appear")
    browser.wait("document.title.length > 9", "the title does not name the model")


def check_tree(browser, way):
    """Opens the tree down to a node with the keyboard alone."""
    focused = "document.activeElement.closest('[role=treeitem]')?.dataset"
    browser.tab_to("#tree [role=treeitem]")
    browser.press("Home")
    target = "/"
    for name in way:
        selector = json.dumps(f"#tree [data-node={json.dumps(target)}]")
        if browser.evaluate(f"document.querySelector({selector}).ariaExpanded") != "true":
            browser.press("ArrowRight")
        browser.wait(f"document.querySelector({selector} + ' > ul > li')",
                     f"{target} does not open")
        browser.press("ArrowRight")
        parent = target
        for _ in range(20000):
            at = browser.evaluate(f"({{...{focused}}})") or {}
            if at.get("node") == name:
                break
            if at.get("more") == parent:
                before = browser.evaluate(f"{focused} && document.activeElement.textContent")
                browser.press("Enter")
                browser.wait(f"document.activeElement.textContent !== {json.dumps(before)}",
                             f"'more' below {parent} adds nothing")
                continue
            here = browser.evaluate(f"{focused}?.node ?? {focused}?.more")
            browser.press("ArrowDown")
            claim(browser.evaluate(f"{focused}?.node ?? {focused}?.more") != here,
                  f"the arrow keys do not reach {name}")
        target = name
    browser.press("Enter")
    browser.wait(f"document.getElementById('try-node').value === {json.dumps(target)}",
                 "Enter in the tree does not choose the node")
    browser.wait("document.querySelectorAll('#node-facts dt').length > 0",
                 "the chosen node's facts do not appear")


WATCH = """
(() => {
  window.seenLengths = {};
  for (const side of ["parent", "node"]) {
    const answer = document.querySelector(`#answer-${side} .answer`);
    const lengths = window.seenLengths[side] = [];
    new MutationObserver(() => {
      const length = answer.textContent.length;
      if (length && length !== lengths.at(-1)?.[0]) lengths.push([length, performance.now()]);
    }).observe(answer, { subtree: true, characterData: true, childList: true });
  }
})()
"""


def check_answers(browser, node, prompt):
    """A request at a node and at its parent, typed and begun with the keyboard."""
    browser.evaluate(WATCH)
    browser.tab_to("#try-node")
    browser.type_over(node)
    browser.press("Tab")
    claim(browser.evaluate("document.activeElement.id") == "try-prompt",
          "Tab does not lead from the node to the prompt")
    browser.type_over(prompt)
    browser.press("Enter", CONTROL)
    browser.wait("!document.getElementById('try-stop').disabled", "Ctrl+Enter does not run it")
    browser.wait("document.getElementById('try-stop').disabled", "the answers do not end", LONG_S)
    lengths = browser.evaluate("window.seenLengths")
    for side in ("parent", "node"):
        place = f"document.querySelector('#answer-{side} .figures')"
        words = browser.evaluate(f"{place}.textContent")
        claim(not browser.evaluate(f"{place}.classList.contains('error')"), f"{side}: {words}")
        grown = lengths[side]
        claim(len(grown) >= 3, f"the answer at the {side} does not grow: {grown} ({words})")
        claim(all(one[0] < other[0] for one, other in zip(grown, grown[1:])),
              f"the answer at the {side} shrinks: {grown}")
        claim("token" in words and " s" in words, f"no tokens and time at the {side}: {words!r}")
        print(f"{side}: {len(grown)} steps over {grown[-1][1] - grown[0][1]:.0f} ms; {words}")


def check_stop(browser, node, tokens):
    """A long answer is stopped with the keyboard."""
    browser.tab_to("#try-tokens", 80)
    old = browser.evaluate("document.activeElement.value")
    browser.type_over(str(tokens))
    browser.tab_to("#try-run")
    browser.press("Enter")
    browser.wait("document.querySelector('#answer-node .figures').textContent"
                 ".match(/first after|ended/)", f"no second answer at {node}", LONG_S)
    browser.press("Tab")
    if browser.evaluate("document.activeElement.id") == "try-stop":
        browser.press("Enter")
        browser.wait("document.querySelector('#answer-node .figures').textContent"
                     ".match(/stopped|ended/)", "Stop does not end the answer")
    browser.wait("document.getElementById('try-stop').disabled", "Stop does not end the requests",
                 LONG_S)
    browser.evaluate(f"document.getElementById('try-tokens').value = {json.dumps(old)}")


def way_to(server, name):
    """The nodes from the first level down to a node, by what the server says of parents."""
    way = []
    while name != "/":
        way.insert(0, name)
        name = server.ask(node_route(name))[1]["parent"]
    return way


def check_switch(browser, server, node, before):
    newest = ("Math.max(0, ...[...document.querySelectorAll('#switch-list li')]"
              ".map((row) => Number(row.dataset.number)))")
    try:
        browser.wait(f"{newest} > {before}", "no switch appears in the list", 5)
    except Failed:
        # The weights may have stood there from the start: send them away and back.
        for name in ("/", node):
            body = {"model": name, "prompt": "a", "max_tokens": 1, "merge": "leaf"}
            claim(server.ask("/v1/completions", body)[0] == 200, f"no token at {name}")
        browser.wait(f"{newest} > {before}", "no switch appears in the list of switches")
    words = browser.evaluate("document.querySelector('#switch-list li').textContent")
    claim("→" in words and "ms" in words, f"a switch without its way or its time: {words!r}")
    browser.wait("document.querySelectorAll('#path-boxes li').length > 0", "no path is shown")


def check_figures(browser):
    """Throughput and latency are drawn, and written beside the lines."""
    for chart, value in (("rate", "rate"), ("first", "first-p50")):
        browser.wait(f"document.querySelector('#{chart}-chart polyline')?.points.length >= 4",
                     f"the chart {chart} stays empty")
        browser.wait(f"document.getElementById('{value}').textContent.match(/[0-9]/)",
                     f"there is no value beside the chart {chart}")
    claim(browser.evaluate("document.querySelectorAll('[role=meter]').length") >= 2,
          "the meters of memory and KV pages are not there")


def check_layout(browser, screenshot):
    colours = {}
    stem = screenshot and screenshot.removesuffix(".png")
    for scheme in ("light", "dark"):
        browser.show_as(1280, 900, scheme)
        colours[scheme] = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        check_width(browser, 1280)
        if screenshot:
            browser.save(f"{stem}.png" if scheme == "light" else f"{stem}-dark.png")
    claim(colours["light"] != colours["dark"], f"light and dark have one background: {colours}")
    browser.show_as(360, 740, "light")
    check_width(browser, 360)
    if screenshot:
        browser.save(f"{stem}-phone.png")


def check_width(browser, width):
    browser.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    wide = browser.evaluate("document.scrollingElement.scrollWidth")
    if wide > width:
        guilty = browser.evaluate(
            f"[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect()"
            f".right > {width}).map((one) => one.id || one.className || one.tagName).slice(0, 5)")
        raise Failed(f"the page is {wide} pixels wide at a width of {width}: {guilty}")


def check_quiet(browser, url, key):
    """No error in the console, no exception, nothing asked of another origin."""
    origin = urlsplit(url)[:2]
    for event in browser.events:
        method, params = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            raise Failed(f"an exception: {params['exceptionDetails']}")
        if method == "Runtime.consoleAPICalled":
            claim(params["type"] not in ("error", "assert"), f"the console: {params['args']}")
        if method == "Log.entryAdded":
            entry = params["entry"]
            expected = key and "401" in entry["text"]
            claim(entry["level"] != "error" or expected, f"the console: {entry}")
        if method == "Network.requestWillBeSent":
            asked = params["request"]["url"]
            claim(asked.startswith(("data:", "about:")) or urlsplit(asked)[:2] == origin,
                  f"a request to another origin: {asked}")
